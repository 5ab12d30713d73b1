//! `ctr leases`

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crated_api::services::leases::v1::leases_client::LeasesClient;
use crated_api::services::leases::v1::{CreateRequest, DeleteRequest, ListRequest};

use crate::cli::duration;
use crate::connect::{Daemon, client};
use crate::error::Result;
use crate::output::{self, Padding, Table};
use crate::spec::split_pair;
use crate::time;

/// The label that ends a lease.
const EXPIRE_LABEL: &str = "containerd.io/gc.expire";

/// What to do with leases.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Create a lease, with labels given as KEY=VALUE.
    Create {
        /// Its id; one is made up otherwise.
        #[arg(long, default_value = "")]
        id: String,
        /// How long it lasts; 0 for ever.
        #[arg(long, visible_alias = "expires", short = 'x', value_parser = duration,
              default_value = "24h")]
        expires: Duration,
        /// Its labels.
        labels: Vec<String>,
    },
    /// List leases.
    #[command(visible_alias = "ls")]
    List {
        /// Print only their ids.
        #[arg(short, long)]
        quiet: bool,
        /// Filters, such as `id==x`.
        filters: Vec<String>,
    },
    /// Delete leases.
    #[command(visible_aliases = ["rm", "del", "remove"])]
    Delete {
        /// Wait until what they held is collected.
        #[arg(long)]
        sync: bool,
        /// Their ids.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// Runs one of them.
pub(crate) async fn run(daemon: &Daemon, command: Command) -> Result<()> {
    let mut client = client!(daemon, LeasesClient);
    match command {
        Command::Create { id, expires, labels } => {
            let mut labels: BTreeMap<_, _> =
                labels.iter().map(|pair| split_pair(pair)).collect::<Result<_>>()?;
            if !expires.is_zero() {
                let end = time::rfc3339(SystemTime::now() + expires);
                labels.insert(EXPIRE_LABEL.to_owned(), end);
            }
            let lease = client.create(CreateRequest { id, labels }).await?.into_inner().lease;
            output::line(lease.unwrap_or_default().id);
        }
        Command::List { quiet, filters } => {
            let leases = client.list(ListRequest { filters }).await?.into_inner().leases;
            if quiet {
                leases.iter().for_each(|lease| output::line(&lease.id));
                return Ok(());
            }
            let mut table = Table::new(Padding::Tight, ["ID", "CREATED AT", "LABELS", ""]);
            for lease in leases {
                let created = lease.created_at.map(time::from_wire).map(time::rfc3339);
                let labels = output::labels(&lease.labels);
                table.row([lease.id, created.unwrap_or_default(), labels, String::new()]);
            }
            table.print();
        }
        Command::Delete { sync, ids } => {
            for id in ids {
                client.delete(DeleteRequest { id: id.clone(), sync }).await?;
                output::line(id);
            }
        }
    }
    Ok(())
}
