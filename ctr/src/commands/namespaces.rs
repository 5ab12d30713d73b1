//! `ctr namespaces`

use std::collections::BTreeMap;

use crated_api::FieldMask;
use crated_api::services::namespaces::v1::namespaces_client::NamespacesClient;
use crated_api::services::namespaces::v1::{
    CreateNamespaceRequest, DeleteNamespaceRequest, ListNamespacesRequest, Namespace,
    UpdateNamespaceRequest,
};

use crate::connect::{Daemon, client};
use crate::error::Result;
use crate::output::{self, Padding, Table};
use crate::spec::split_pair;

/// What to do with namespaces.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Create a namespace, with labels given as KEY=VALUE.
    #[command(visible_alias = "c")]
    Create {
        /// Its name.
        name: String,
        /// Its labels.
        labels: Vec<String>,
    },
    /// List namespaces.
    #[command(visible_alias = "ls")]
    List {
        /// Print only their names.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Set labels of a namespace; an empty value clears one.
    Label {
        /// Its name.
        name: String,
        /// Labels given as KEY=VALUE.
        #[arg(required = true)]
        labels: Vec<String>,
    },
    /// Remove namespaces, which must be empty.
    #[command(visible_aliases = ["rm", "delete", "del"])]
    Remove {
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Runs one of them.
pub(crate) async fn run(daemon: &Daemon, command: Command) -> Result<()> {
    let mut client = client!(daemon, NamespacesClient);
    match command {
        Command::Create { name, labels } => {
            let labels = labels.iter().map(|pair| split_pair(pair)).collect::<Result<_>>()?;
            let namespace = Some(Namespace { name, labels });
            client.create(CreateNamespaceRequest { namespace }).await?;
        }
        Command::List { quiet } => {
            let request = ListNamespacesRequest::default();
            list(client.list(request).await?.into_inner().namespaces, quiet);
        }
        Command::Label { name, labels } => {
            let labels: BTreeMap<_, _> =
                labels.iter().map(|pair| split_pair(pair)).collect::<Result<_>>()?;
            let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
            let request = UpdateNamespaceRequest {
                namespace: Some(Namespace { name, labels }),
                update_mask: Some(FieldMask { paths }),
            };
            client.update(request).await?;
        }
        Command::Remove { names } => {
            for name in names {
                client.delete(DeleteNamespaceRequest { name: name.clone() }).await?;
                output::line(name);
            }
        }
    }
    Ok(())
}

fn list(namespaces: Vec<Namespace>, quiet: bool) {
    if quiet {
        namespaces.iter().for_each(|namespace| output::line(&namespace.name));
        return;
    }
    let mut table = Table::new(Padding::Tight, ["NAME", "LABELS", ""]);
    for Namespace { name, labels } in namespaces {
        let labels = output::labels(&labels);
        let labels = if labels == "-" { String::new() } else { labels };
        table.row([name, labels, String::new()]);
    }
    table.print();
}
