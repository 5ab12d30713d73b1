//! `ctr tasks metrics`
//!
//! Only the measurements that are shown are described here; the rest of the messages is
//! passed over. Field numbers are those of `io.containerd.cgroups.v1` and `v2`.

use crated_api::services::tasks::v1::MetricsRequest;
use crated_api::services::tasks::v1::tasks_client::TasksClient;
use prost::Message;

use crate::connect::{Daemon, client};
use crate::error::{Error, Result};
use crate::output::{Padding, Table};
use crate::time;

#[derive(Clone, PartialEq, Message)]
struct Pids {
    #[prost(uint64, tag = "1")]
    current: u64,
    #[prost(uint64, tag = "2")]
    limit: u64,
}

/// Version 1: controllers of their own hierarchies.
#[derive(Clone, PartialEq, Message)]
struct Version1 {
    #[prost(message, optional, tag = "2")]
    pids: Option<Pids>,
    #[prost(message, optional, tag = "3")]
    cpu: Option<Cpu1>,
    #[prost(message, optional, tag = "4")]
    memory: Option<Memory1>,
}

#[derive(Clone, PartialEq, Message)]
struct Cpu1 {
    #[prost(message, optional, tag = "1")]
    usage: Option<CpuUsage1>,
}

#[derive(Clone, PartialEq, Message)]
struct CpuUsage1 {
    #[prost(uint64, tag = "1")]
    total: u64,
    #[prost(uint64, repeated, tag = "4")]
    per_cpu: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct Memory1 {
    #[prost(uint64, tag = "1")]
    cache: u64,
    #[prost(message, optional, tag = "33")]
    usage: Option<MemoryEntry1>,
}

#[derive(Clone, PartialEq, Message)]
struct MemoryEntry1 {
    #[prost(uint64, tag = "1")]
    limit: u64,
    #[prost(uint64, tag = "2")]
    usage: u64,
}

/// Version 2: one hierarchy.
#[derive(Clone, PartialEq, Message)]
struct Version2 {
    #[prost(message, optional, tag = "1")]
    pids: Option<Pids>,
    #[prost(message, optional, tag = "2")]
    cpu: Option<Cpu2>,
    #[prost(message, optional, tag = "4")]
    memory: Option<Memory2>,
}

#[derive(Clone, PartialEq, Message)]
struct Cpu2 {
    #[prost(uint64, tag = "1")]
    usage_usec: u64,
    #[prost(uint64, tag = "2")]
    user_usec: u64,
    #[prost(uint64, tag = "3")]
    system_usec: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Memory2 {
    #[prost(uint64, tag = "32")]
    usage: u64,
    #[prost(uint64, tag = "33")]
    usage_limit: u64,
}

/// Prints one measurement.
pub(crate) async fn run(daemon: &Daemon, id: String) -> Result<()> {
    let request = MetricsRequest { filters: vec![format!("id=={id}")] };
    let answer = client!(daemon, TasksClient).metrics(request).await?.into_inner();
    let metric = answer
        .metrics
        .into_iter()
        .next()
        .ok_or_else(|| Error::Refused(format!("no metrics received for {id:?}")))?;
    let moment = metric.timestamp.map(time::from_wire).map(time::verbose).unwrap_or_default();
    let mut head = Table::new(Padding::Wide, ["ID", "TIMESTAMP", ""]);
    head.row([metric.id, moment, String::new()]);
    head.print();
    crate::output::line("");

    let data = metric.data.unwrap_or_default();
    let kind = data.type_url.rsplit('/').next().unwrap_or_default();
    let rows = match kind {
        "io.containerd.cgroups.v1.Metrics" => Version1::decode(data.value.as_slice()).map(rows_1),
        "io.containerd.cgroups.v2.Metrics" => Version2::decode(data.value.as_slice()).map(rows_2),
        other => {
            return Err(Error::Refused(format!("cannot read metrics of type {other:?}")));
        }
    };
    let mut table = Table::new(Padding::Wide, ["METRIC", "VALUE", ""]);
    for (name, value) in rows.map_err(Error::malformed("metrics"))? {
        table.row([name.to_owned(), value, String::new()]);
    }
    table.print();
    Ok(())
}

fn rows_1(metrics: Version1) -> Vec<(&'static str, String)> {
    let memory = metrics.memory.unwrap_or_default();
    let entry = memory.usage.unwrap_or_default();
    let cpu = metrics.cpu.and_then(|cpu| cpu.usage).unwrap_or_default();
    let pids = metrics.pids.unwrap_or_default();
    let per_cpu: Vec<String> = cpu.per_cpu.iter().map(u64::to_string).collect();
    vec![
        ("memory.usage_in_bytes", entry.usage.to_string()),
        ("memory.limit_in_bytes", entry.limit.to_string()),
        ("memory.stat.cache", memory.cache.to_string()),
        ("cpuacct.usage", cpu.total.to_string()),
        ("cpuacct.usage_percpu", format!("[{}]", per_cpu.join(" "))),
        ("pids.current", pids.current.to_string()),
        ("pids.limit", pids.limit.to_string()),
    ]
}

fn rows_2(metrics: Version2) -> Vec<(&'static str, String)> {
    let memory = metrics.memory.unwrap_or_default();
    let cpu = metrics.cpu.unwrap_or_default();
    let pids = metrics.pids.unwrap_or_default();
    vec![
        ("pids.current", pids.current.to_string()),
        ("pids.limit", pids.limit.to_string()),
        ("cpu.usage_usec", cpu.usage_usec.to_string()),
        ("cpu.user_usec", cpu.user_usec.to_string()),
        ("cpu.system_usec", cpu.system_usec.to_string()),
        ("memory.usage", memory.usage.to_string()),
        ("memory.usage_limit", memory.usage_limit.to_string()),
    ]
}
