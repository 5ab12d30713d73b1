//! `ctr content`

use std::collections::BTreeMap;

use crated_api::FieldMask;
use crated_api::services::content::v1::content_client::ContentClient;
use crated_api::services::content::v1::{
    AbortRequest, DeleteContentRequest, Info, ListContentRequest, ListStatusesRequest,
    ReadContentRequest, UpdateRequest, WriteAction, WriteContentRequest,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::beside::Source;
use crate::connect::{Daemon, client};
use crate::error::{Error, Result};
use crate::output::{self, Padding, Table};
use crate::spec::split_pair;
use crate::time;

/// Bytes sent in one message: half of what the daemon accepts, with room for the rest.
const PART_BYTES: usize = 1 << 20;

/// What to do with content.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show ingests that are under way or were left.
    Active {
        /// Only those whose reference matches.
        pattern: Option<String>,
    },
    /// Drop ingests by reference.
    Abort {
        /// Their references.
        #[arg(required = true)]
        references: Vec<String>,
    },
    /// Delete blobs.
    #[command(visible_aliases = ["rm", "del", "remove"])]
    Delete {
        /// Their digests.
        #[arg(required = true)]
        digests: Vec<String>,
    },
    /// Fetch an image without unpacking it.
    Fetch(Box<super::images::FetchArguments>),
    /// Write a blob to standard output.
    Get {
        /// Its digest.
        digest: String,
    },
    /// Store standard input as a blob.
    Ingest {
        /// Bytes that must arrive; 0 for any.
        #[arg(long, default_value_t = 0)]
        expected_size: i64,
        /// The digest that the bytes must have.
        #[arg(long, default_value = "")]
        expected_digest: String,
        /// A name for the transfer, so that it can be resumed.
        reference: String,
    },
    /// Set labels of a blob; an empty value clears one.
    Label {
        /// Its digest.
        digest: String,
        /// Labels given as KEY=VALUE.
        #[arg(required = true)]
        labels: Vec<String>,
    },
    /// List blobs.
    #[command(visible_alias = "ls")]
    List {
        /// Print only their digests.
        #[arg(short, long)]
        quiet: bool,
        /// Filters, such as `labels."k"==v`.
        filters: Vec<String>,
    },
}

/// Runs one of them.
pub(crate) async fn run(daemon: &Daemon, command: Command) -> Result<()> {
    let mut client = client!(daemon, ContentClient);
    match command {
        Command::Active { pattern } => {
            let filters = vec![pattern.map_or(String::new(), |text| format!("ref~={text:?}"))];
            let answer = client.list_statuses(ListStatusesRequest { filters }).await?;
            let mut table = Table::new(Padding::Tabs, ["REF", "SIZE", "AGE", ""]);
            for status in answer.into_inner().statuses {
                let size = output::size_decimal(u64::try_from(status.offset).unwrap_or_default());
                let age = output::age(since(status.started_at));
                table.row([status.r#ref, size, age, String::new()]);
            }
            table.print();
        }
        Command::Abort { references } => {
            for reference in references {
                client.abort(AbortRequest { r#ref: reference }).await?;
            }
        }
        Command::Delete { digests } => {
            for digest in digests {
                client.delete(DeleteContentRequest { digest: digest.clone() }).await?;
                output::line(digest);
            }
        }
        Command::Fetch(arguments) => super::images::fetch(daemon, *arguments).await?,
        Command::Get { digest } => print(daemon, &digest).await?,
        Command::Ingest { expected_size, expected_digest, reference } => {
            ingest(daemon, reference, expected_size, expected_digest).await?;
        }
        Command::Label { digest, labels } => {
            let labels: BTreeMap<_, _> =
                labels.iter().map(|pair| split_pair(pair)).collect::<Result<_>>()?;
            let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
            let request = UpdateRequest {
                info: Some(Info { digest, labels, ..Info::default() }),
                update_mask: Some(FieldMask { paths }),
            };
            let info = client.update(request).await?.into_inner().info.unwrap_or_default();
            output::line(output::labels(&info.labels));
        }
        Command::List { quiet, filters } => list(daemon, quiet, filters).await?,
    }
    Ok(())
}

/// Writes a blob to standard output.
pub(crate) async fn print(daemon: &Daemon, digest: &str) -> Result<()> {
    let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
    let mut stream = client!(daemon, ContentClient).read(request).await?.into_inner();
    while let Some(part) = stream.message().await? {
        output::print(&part.data);
    }
    Ok(())
}

async fn list(daemon: &Daemon, quiet: bool, filters: Vec<String>) -> Result<()> {
    let request = ListContentRequest { filters };
    let mut stream = client!(daemon, ContentClient).list(request).await?.into_inner();
    let mut table = Table::new(Padding::Tabs, ["DIGEST", "SIZE", "AGE", "LABELS"]);
    while let Some(batch) = stream.message().await? {
        for info in batch.info {
            if quiet {
                output::line(info.digest);
                continue;
            }
            let size = output::size_decimal(u64::try_from(info.size).unwrap_or_default());
            let age = output::age(since(info.created_at));
            table.row([info.digest, size, age, output::labels(&info.labels)]);
        }
    }
    if !quiet {
        table.print();
    }
    Ok(())
}

/// Sends standard input, message by message, each answered before the next.
async fn ingest(daemon: &Daemon, reference: String, total: i64, expected: String) -> Result<()> {
    let (send, outgoing) = mpsc::channel(1);
    let mut message = WriteContentRequest {
        action: WriteAction::Stat.into(),
        r#ref: reference,
        total,
        expected,
        ..WriteContentRequest::default()
    };
    let gone = |_| Error::Refused("the daemon ended the transfer".to_owned());
    send.send(message.clone()).await.map_err(gone)?;
    let mut answers =
        client!(daemon, ContentClient).write(ReceiverStream::new(outgoing)).await?.into_inner();
    let mut offset = next_offset(&mut answers).await?;
    let mut input = Source::new(std::io::stdin(), "standard input");
    // What an earlier, interrupted transfer already stored.
    input.skip(u64::try_from(offset).unwrap_or_default()).await?;

    loop {
        let part = input.read(PART_BYTES).await?;
        if part.is_empty() {
            break;
        }
        message.action = WriteAction::Write.into();
        message.offset = offset;
        message.data = part.into();
        // A refusal arrives as the answer; the channel's end says less.
        let _ = send.send(message.clone()).await;
        offset = next_offset(&mut answers).await?;
    }
    message.action = WriteAction::Commit.into();
    message.offset = offset;
    message.data = Vec::new().into();
    let _ = send.send(message).await;
    next_offset(&mut answers).await?;
    Ok(())
}

async fn next_offset(
    answers: &mut tonic::Streaming<crated_api::services::content::v1::WriteContentResponse>,
) -> Result<i64> {
    let answer = answers.message().await?;
    let ended = || Error::Refused("the daemon ended the transfer without an answer".to_owned());
    Ok(answer.ok_or_else(ended)?.offset)
}

fn since(moment: Option<crated_api::Timestamp>) -> std::time::Duration {
    moment.map(time::from_wire).map(time::since).unwrap_or_default()
}
