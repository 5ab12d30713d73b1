//! `ctr net apply`: a file that says what there is to be.
//!
//! Network namespaces and links that are there already are changed to what the file says, in the
//! fields it names. Nothing that it does not name is touched. All of it takes effect, or nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crated_api::FieldMask;
use crated_api::network as api;
use crated_api::network::network_client::NetworkClient;
use crated_api::network::operation::Change;
use crated_api::network::result::Outcome;
use serde::Deserialize;

use super::describe::{self, LinkKind, Settings, refused};
use crate::connect::{Daemon, client};
use crate::error::{Error, Result};
use crate::output;

/// How many bytes of a file are read.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Which file.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A plan in TOML, or in JSON when its name ends in .json or it starts with a brace; - for
    /// standard input.
    file: PathBuf,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

/// What there is to be.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Plan {
    netns: Vec<Netns>,
    link: Vec<Link>,
    route: Vec<Route>,
    neigh: Vec<Neigh>,
    rule: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Netns {
    id: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    sysctls: BTreeMap<String, String>,
    lo_up: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Link {
    netns: String,
    name: String,
    #[serde(default)]
    id: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(flatten)]
    kind: LinkKind,
    #[serde(flatten)]
    settings: Settings,
    /// What no field took: spelling mistakes.
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Route {
    netns: String,
    route: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Neigh {
    netns: String,
    dev: String,
    ip: String,
    mac: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Rule {
    netns: String,
    from: String,
    to: String,
    iif: String,
    oif: String,
    table: u32,
    priority: Option<u32>,
    mark: Option<u32>,
}

/// Carries a file out.
pub(crate) async fn run(daemon: &Daemon, arguments: Arguments) -> Result<()> {
    let plan = parse(&arguments.file, &read(&arguments.file)?)?;
    let there = There::look(daemon, &plan).await?;
    let (operations, lines) = operations(&plan, &there)?;
    if arguments.dry_run || operations.is_empty() {
        lines.iter().for_each(output::line);
        return Ok(());
    }
    let request = api::ApplyRequest { operations, atomic: true };
    let answer = client!(daemon, NetworkClient).apply(request).await?.into_inner();
    for (result, line) in answer.results.iter().zip(&lines) {
        if let Some(Outcome::Error(error)) = &result.outcome {
            return Err(refused(format!("{line}: {}", error.message)));
        }
        output::line(line);
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    let mut text = String::new();
    let source: Box<dyn std::io::Read> = match path.to_str() {
        Some("-") => Box::new(std::io::stdin()),
        _ => Box::new(std::fs::File::open(path).map_err(Error::io("open", path.display()))?),
    };
    source
        .take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(Error::io("read", path.display()))?;
    Ok(text)
}

fn parse(path: &Path, text: &str) -> Result<Plan> {
    let json =
        path.extension().is_some_and(|it| it == "json") || text.trim_start().starts_with('{');
    let malformed = Error::malformed::<String>(format!("plan {}", path.display()));
    let plan: Result<Plan, String> = match json {
        true => serde_json::from_str(text).map_err(|error| error.to_string()),
        false => toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned()),
    };
    let plan = plan.map_err(malformed)?;
    for link in &plan.link {
        if let Some(field) = link.rest.keys().next() {
            return Err(refused(format!(
                "plan {}: link {}: unknown field {field:?}",
                path.display(),
                link.name
            )));
        }
    }
    Ok(plan)
}

/// What is there already.
#[derive(Default)]
struct There {
    netns: BTreeSet<String>,
    links: BTreeSet<(String, String)>,
    routes: BTreeMap<String, Vec<api::Route>>,
    neighbours: BTreeMap<String, Vec<api::Neighbour>>,
    rules: BTreeMap<String, Vec<api::Rule>>,
}

impl There {
    async fn look(daemon: &Daemon, plan: &Plan) -> Result<Self> {
        let mut client = client!(daemon, NetworkClient);
        let netns = client.list_netns(api::ListNetnsRequest::default()).await?.into_inner();
        let links = client.list_links(api::ListLinksRequest::default()).await?.into_inner();
        let mut there = Self {
            netns: netns.netns.into_iter().map(|netns| netns.id).collect(),
            links: links.links.into_iter().map(|link| (link.netns, link.id)).collect(),
            ..Self::default()
        };
        let is_there = |netns: &&String| *netns == "host" || there.netns.contains(*netns);
        let named = |all: BTreeSet<&String>| -> Vec<String> {
            all.into_iter().filter(is_there).cloned().collect()
        };
        let routes = named(plan.route.iter().map(|it| &it.netns).collect());
        let neighbours = named(plan.neigh.iter().map(|it| &it.netns).collect());
        let rules = named(plan.rule.iter().map(|it| &it.netns).collect());
        for netns in routes {
            let request = api::ListRoutesRequest { netns: netns.clone() };
            there.routes.insert(netns, client.list_routes(request).await?.into_inner().routes);
        }
        for netns in neighbours {
            let request = api::ListNeighboursRequest { netns: netns.clone() };
            let found = client.list_neighbours(request).await?.into_inner().neighbours;
            there.neighbours.insert(netns, found);
        }
        for netns in rules {
            let request = api::ListRulesRequest { netns: netns.clone() };
            there.rules.insert(netns, client.list_rules(request).await?.into_inner().rules);
        }
        Ok(there)
    }

    fn has_neighbour(&self, netns: &str, wanted: &api::Neighbour) -> bool {
        let same = |it: &api::Neighbour| {
            (&it.dev, &it.ip) == (&wanted.dev, &wanted.ip)
                && it.mac.eq_ignore_ascii_case(&wanted.mac)
                && it.permanent
        };
        self.neighbours.get(netns).is_some_and(|all| all.iter().any(same))
    }

    fn has_rule(&self, netns: &str, wanted: &api::Rule) -> bool {
        let place = |it: &api::Rule| (it.from.clone(), it.to.clone(), it.iif.clone());
        let same = |it: &api::Rule| {
            place(it) == place(wanted)
                && (&it.oif, it.table, it.mark) == (&wanted.oif, wanted.table, wanted.mark)
                && (wanted.priority.is_none() || it.priority == wanted.priority)
        };
        self.rules.get(netns).is_some_and(|all| all.iter().any(same))
    }

    fn has_route(&self, netns: &str, route: &api::Route) -> bool {
        let wanted = describe::route_text(route);
        let routes = self.routes.get(netns).map_or(&[][..], Vec::as_slice);
        routes.iter().any(|route| describe::route_text(route) == wanted)
    }
}

fn operations(plan: &Plan, there: &There) -> Result<(Vec<api::Operation>, Vec<String>)> {
    let (mut operations, mut lines) = (Vec::new(), Vec::new());
    let mut add = |netns: &str, change: Change, line: String| {
        operations.push(api::Operation { netns: netns.to_owned(), change: Some(change) });
        lines.push(line);
    };
    for netns in plan.netns.iter().filter(|netns| !there.netns.contains(&netns.id)) {
        let made = api::Netns {
            id: netns.id.clone(),
            labels: netns.labels.clone(),
            sysctls: netns.sysctls.clone(),
            lo_up: netns.lo_up,
            ..api::Netns::default()
        };
        let change = Change::CreateNetns(api::CreateNetnsRequest { netns: Some(made) });
        add("", change, format!("netns {} created", netns.id));
    }
    for netns in plan.netns.iter().filter(|netns| there.netns.contains(&netns.id)) {
        for (key, value) in &netns.sysctls {
            let setting = api::Setting { key: key.clone(), value: value.clone() };
            add(&netns.id, Change::SetSysctl(setting), format!("netns {} {key} set", netns.id));
        }
    }
    for link in &plan.link {
        let id = if link.id.is_empty() { link.name.clone() } else { link.id.clone() };
        let name = format!("link {}/{id}", link.netns);
        let (spec, mut given) = link.settings.message().map_err(|error| named(&name, &error))?;
        let exists = there.links.contains(&(link.netns.clone(), id.clone()));
        let mut made = api::Link {
            id: id.clone(),
            netns: link.netns.clone(),
            labels: link.labels.clone(),
            spec: Some(spec),
            ..api::Link::default()
        };
        if exists {
            if !link.labels.is_empty() {
                given.push("labels".to_owned());
            }
            if given.is_empty() {
                continue;
            }
            let update_mask = Some(FieldMask { paths: given });
            let change = api::UpdateLinkRequest { link: Some(made), update_mask };
            add("", Change::UpdateLink(change), format!("{name} updated"));
            continue;
        }
        if let Some(spec) = &mut made.spec {
            spec.name.clone_from(&link.name);
            spec.kind = Some(link.kind.message().map_err(|error| named(&name, &error))?);
        }
        let change = Change::CreateLink(api::CreateLinkRequest { link: Some(made) });
        add("", change, format!("{name} created"));
    }
    for route in &plan.route {
        let made = describe::route(&route.route)?;
        if !there.has_route(&route.netns, &made) {
            let line = format!("route {} in {} created", route.route, route.netns);
            add(&route.netns, Change::AddRoute(made), line);
        }
    }
    for neigh in &plan.neigh {
        let made = api::Neighbour {
            dev: neigh.dev.clone(),
            ip: neigh.ip.clone(),
            mac: neigh.mac.clone(),
            permanent: true,
        };
        if !there.has_neighbour(&neigh.netns, &made) {
            let line = format!("neighbour {} in {} created", neigh.ip, neigh.netns);
            add(&neigh.netns, Change::AddNeighbour(made), line);
        }
    }
    for rule in &plan.rule {
        let made = api::Rule {
            from: rule.from.clone(),
            to: rule.to.clone(),
            iif: rule.iif.clone(),
            oif: rule.oif.clone(),
            table: rule.table,
            priority: rule.priority,
            mark: rule.mark,
            ..api::Rule::default()
        };
        if !there.has_rule(&rule.netns, &made) {
            let line = format!("rule for table {} in {} created", rule.table, rule.netns);
            add(&rule.netns, Change::AddRule(made), line);
        }
    }
    Ok((operations, lines))
}

fn named(name: &str, error: &Error) -> Error {
    refused(format!("{name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = r#"
        [[netns]]
        id = "web"
        sysctls = { "net.ipv4.ip_forward" = "1" }

        [[link]]
        netns = "host"
        name = "br0"
        kind = "bridge"
        addrs = ["10.9.0.1/24"]

        [[link]]
        netns = "web"
        name = "eth0"
        kind = "veth"
        peer_master = "br0"
        addrs = ["10.9.0.2/24"]
        routes = ["default via 10.9.0.1"]
        egress = "10mbit"
    "#;

    #[test]
    fn plans_are_read_from_toml_and_json_alike() {
        let toml = parse(Path::new("p.toml"), TOML).unwrap();
        let value: serde_json::Value = toml::from_str(TOML).unwrap();
        let json = parse(Path::new("p.json"), &value.to_string()).unwrap();
        let made = |plan: &Plan| operations(plan, &There::default()).unwrap();
        assert_eq!(made(&toml), made(&json));
        let lines = made(&toml).1;
        assert_eq!(lines, ["netns web created", "link host/br0 created", "link web/eth0 created"]);
    }

    #[test]
    fn what_is_there_is_changed_in_the_fields_named() {
        let plan = parse(Path::new("p.toml"), TOML).unwrap();
        let there = There {
            netns: BTreeSet::from(["web".to_owned()]),
            links: BTreeSet::from([("web".to_owned(), "eth0".to_owned())]),
            ..There::default()
        };
        let (operations, lines) = operations(&plan, &there).unwrap();
        assert_eq!(lines[0], "netns web net.ipv4.ip_forward set");
        assert_eq!(lines[2], "link web/eth0 updated");
        let Some(Change::UpdateLink(update)) = &operations[2].change else { panic!() };
        let paths = &update.update_mask.as_ref().unwrap().paths;
        assert_eq!(paths, &["spec.addrs", "spec.routes", "spec.bandwidth"]);
    }

    #[test]
    fn neighbours_and_rules_that_are_there_are_not_made_again() {
        let text = r#"
            [[neigh]]
            netns = "web"
            dev = "eth0"
            ip = "10.9.0.9"
            mac = "02:00:00:00:00:0A"

            [[rule]]
            netns = "web"
            from = "10.9.0.0/24"
            table = 7
        "#;
        let plan = parse(Path::new("p.toml"), text).unwrap();
        let web = || "web".to_owned();
        let neigh = api::Neighbour {
            dev: "eth0".into(),
            ip: "10.9.0.9".into(),
            mac: "02:00:00:00:00:0a".into(),
            permanent: true,
        };
        let rule = api::Rule {
            from: "10.9.0.0/24".into(),
            table: 7,
            priority: Some(32_765),
            ..api::Rule::default()
        };
        let mut there = There {
            neighbours: BTreeMap::from([(web(), vec![neigh])]),
            rules: BTreeMap::from([(web(), vec![rule])]),
            ..There::default()
        };
        assert_eq!(operations(&plan, &there).unwrap().0, []);
        there.neighbours.clear();
        there.rules.get_mut("web").unwrap()[0].table = 8;
        let lines = operations(&plan, &there).unwrap().1;
        assert_eq!(lines, ["neighbour 10.9.0.9 in web created", "rule for table 7 in web created"]);
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| match parse(Path::new("p"), text) {
            Err(error) => error.to_string(),
            Ok(plan) => operations(&plan, &There::default()).unwrap_err().to_string(),
        };
        let link = |rest: &str| format!("[[link]]\nnetns='a'\nname='b'\n{rest}");
        assert!(error(&link("adrs=['x']")).contains("unknown field \"adrs\""));
        assert!(error(&link("kind='cable'")).contains("kind \"cable\""));
        assert!(error(&link("routes=['default by x']")).contains("link a/b: route"));
        assert!(error("[[netns]]\nname='x'").contains("name"));
        assert!(error("{").contains("plan p"));
    }
}
