//! Plans: all steps or none, over several namespaces.

mod common;

use common::{ifname, ns, scratch};
use crated_netns::{
    BridgeOpts, Error, IfName, Link, LinkChange, LinkKind, LinkSpec, Neigh, Netns, NetnsSpec,
    OWN_PROTOCOL, Op, PeerSpec, Place, Plan, Route, Rule,
};
use proptest::prelude::*;

/// What a plan could change about a namespace, in an order of its own.
fn state(netns: &Netns) -> Vec<String> {
    let link = |l: &Link| {
        let mut addrs: Vec<_> = l
            .addrs
            .iter()
            .filter(|a| a.protocol == OWN_PROTOCOL)
            .map(ToString::to_string)
            .collect();
        addrs.sort();
        format!(
            "{} {:?} mtu {} up {} alias {:?} master {:?} alt {:?} group {} addrs {addrs:?}",
            l.ifname, l.kind, l.mtu, l.up, l.alias, l.master, l.altnames, l.group
        )
    };
    let mut state: Vec<String> = netns.links().unwrap().iter().map(link).collect();
    let routes = netns.routes().unwrap();
    state.extend(routes.iter().filter(|r| r.protocol == OWN_PROTOCOL).map(|r| format!("{r:?}")));
    state.extend(netns.rules().unwrap().iter().map(|r| format!("{r:?}")));
    let neighbours = netns.neighbours().unwrap();
    state.extend(neighbours.iter().filter(|n| n.permanent).map(|n| format!("{n:?}")));
    state.sort();
    state
}

fn bridge(name: &str) -> LinkSpec {
    LinkSpec::new(ifname(name), LinkKind::Bridge(BridgeOpts::default())).up()
}

fn cable(name: &str, peer: &str, master: &str) -> LinkSpec {
    let peer = PeerSpec::on_host(ifname(peer)).master(ifname(master));
    LinkSpec::new(ifname(name), LinkKind::Veth { peer }).up()
}

#[test]
fn container_is_attached_by_one_plan() {
    scratch(|host| {
        let (h, a) = (host.root.host(), host.root.create(&ns("a"), &NetnsSpec::default()).unwrap());
        let eth0 = cable("eth0", "va", "br0").address("10.9.0.2/24".parse().unwrap());
        let applied = Plan::new()
            .create_link(&h, bridge("br0"))
            .create_link(&a, eth0)
            .step(&a, Op::AddRoute(Route::default_via("10.9.0.1".parse().unwrap())))
            .step(
                &a,
                Op::SetSysctl { key: "net.ipv4.ip_forward".parse().unwrap(), value: "1".into() },
            )
            .execute()
            .unwrap();
        assert_eq!(applied.steps, 4);
        assert!(a.routes().unwrap().iter().any(|r| r.dst.is_default()));
        assert_eq!(a.sysctl(&"net.ipv4.ip_forward".parse().unwrap()).unwrap(), "1");
    });
}

/// One of every reversible step, on what the one before it made.
fn every_step(h: &Netns, a: &Netns) -> Vec<(Netns, Op)> {
    let link = |name: &str| ifname(name);
    let change = LinkChange {
        mtu: Some(1280),
        alias: Some("x".into()),
        altnames: Some(vec!["second-name".parse().unwrap()]),
        addrs: Some(vec!["10.9.0.9/24".parse().unwrap()]),
        rename: Some(link("eth9")),
        ..LinkChange::default()
    };
    let moved = LinkChange {
        move_to: Some(Place::Host),
        rename: Some(link("moved0")),
        ..LinkChange::default()
    };
    let existing = LinkKind::Existing { name: link("spare"), from: Place::Host };
    let rule = Rule { priority: Some(9), table: 77, ..Rule::default() };
    let neigh = Neigh {
        dev: link("eth9"),
        ip: "10.9.0.50".parse().unwrap(),
        mac: Some("02:00:00:00:00:50".parse().unwrap()),
        permanent: true,
    };
    let create = |spec: LinkSpec| Op::CreateLink(Box::new(spec));
    let key = || "net.ipv4.conf.all.forwarding".parse().unwrap();
    vec![
        (h.clone(), create(bridge("br7"))),
        (a.clone(), create(cable("eth0", "va", "br7").address("10.9.0.2/24".parse().unwrap()))),
        (a.clone(), Op::ChangeLink { link: link("eth0"), change: Box::new(change) }),
        (a.clone(), Op::AddAddr { link: link("eth9"), addr: "10.9.1.1/24".parse().unwrap() }),
        (a.clone(), Op::RemoveAddr { link: link("eth9"), addr: "10.9.0.9/24".parse().unwrap() }),
        (a.clone(), Op::AddRoute(Route::default_via("10.9.1.254".parse().unwrap()))),
        (a.clone(), Op::AddRule(rule)),
        (a.clone(), Op::AddNeigh(neigh)),
        (a.clone(), Op::SetSysctl { key: key(), value: "1".into() }),
        (a.clone(), create(LinkSpec::new(link("in0"), existing))),
        (a.clone(), Op::ChangeLink { link: link("in0"), change: Box::new(moved) }),
    ]
}

#[test]
fn failure_at_any_step_leaves_the_state_before_the_plan() {
    scratch(|host| {
        let (h, a) = (host.root.host(), host.root.create(&ns("a"), &NetnsSpec::default()).unwrap());
        let spare = LinkKind::Veth { peer: PeerSpec::here(ifname("spare1")) };
        h.create_link(&LinkSpec::new(ifname("spare"), spare)).unwrap();
        let steps = every_step(&h, &a);
        let before = (state(&h), state(&a));
        for failing in 0..=steps.len() {
            let mut plan = Plan::new();
            for (netns, op) in &steps[..failing] {
                plan = plan.step(netns, op.clone());
            }
            let missing = ifname("nowhere0");
            let plan = plan.change_link(&a, missing, LinkChange::default());
            let failed = plan.execute().unwrap_err();
            assert_eq!(failed.step, failing, "{failed}");
            assert!(matches!(*failed.error, Error::NotFound { .. }), "{failed}");
            assert_eq!(failed.undone, failing, "{failed}");
            assert!(failed.left_over.is_empty(), "{failed}");
            assert_eq!((state(&h), state(&a)), before, "failing at {failing}");
        }
    });
}

#[test]
fn removal_of_a_link_must_come_last() {
    scratch(|host| {
        let h = host.root.host();
        h.create_link(&bridge("br0")).unwrap();
        let plan = Plan::new().delete_link(&h, ifname("br0")).create_link(&h, bridge("br1"));
        let failed = plan.execute().unwrap_err();
        assert_eq!(failed.step, 1);
        assert!(matches!(*failed.error, Error::InvalidValue { field: "plan", .. }));
        assert!(h.link(&ifname("br0")).is_ok());
        let plan = Plan::new().create_link(&h, bridge("br1")).delete_link(&h, ifname("br0"));
        plan.execute().unwrap();
        assert!(h.link(&ifname("br0")).is_err() && h.link(&ifname("br1")).is_ok());
    });
}

#[test]
fn steps_run_each_by_itself_report_each_by_itself() {
    scratch(|host| {
        let h = host.root.host();
        let results = Plan::new()
            .create_link(&h, bridge("br0"))
            .create_link(&h, bridge("br0"))
            .create_link(&h, bridge("br1"))
            .execute_each();
        assert!(results[0].is_ok() && results[2].is_ok());
        assert!(matches!(results[1], Err(Error::AlreadyExists { .. })));
    });
}

/// A step of a random plan, by small numbers so that steps meet.
fn random_step() -> impl Strategy<Value = Op> {
    let name = |n: u8| -> IfName { ifname(&format!("b{n}")) };
    let addr = |n: u8| format!("10.{n}.0.1/24").parse().unwrap();
    prop_oneof![
        (0..3_u8).prop_map(move |n| Op::CreateLink(Box::new(bridge(&format!("b{n}"))))),
        (0..3_u8, 1200..1205_u32, any::<bool>(), proptest::option::of(0..3_u8)).prop_map(
            move |(n, mtu, up, rename)| Op::ChangeLink {
                link: name(n),
                change: Box::new(LinkChange {
                    mtu: Some(mtu),
                    up: Some(up),
                    rename: rename.map(name),
                    alias: Some(format!("alias {mtu}")),
                    ..LinkChange::default()
                }),
            }
        ),
        (0..3_u8, 0..3_u8).prop_map(move |(n, a)| Op::AddAddr { link: name(n), addr: addr(a) }),
        (0..3_u8, 0..3_u8).prop_map(move |(n, a)| Op::RemoveAddr { link: name(n), addr: addr(a) }),
        (0..3_u32).prop_map(|n| Op::AddRule(Rule {
            priority: Some(100 + n),
            table: 7,
            ..Rule::default()
        })),
        (0..3_u32).prop_map(|n| Op::RemoveRule(Rule {
            priority: Some(100 + n),
            table: 7,
            ..Rule::default()
        })),
    ]
}

#[test]
fn random_plans_happen_whole_or_not_at_all() {
    scratch(|host| {
        let a = host.root.create(&ns("a"), &NetnsSpec::default()).unwrap();
        let config = ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() };
        let mut runner = proptest::test_runner::TestRunner::new(config);
        let plans = proptest::collection::vec(random_step(), 1..8);
        // The namespace is carried over, so that plans start from many states.
        let outcome = runner.run(&plans, |steps| {
            let before = state(&a);
            let mut plan = Plan::new();
            for op in &steps {
                plan = plan.step(&a, op.clone());
            }
            match plan.execute() {
                Ok(applied) => prop_assert_eq!(applied.steps, steps.len()),
                Err(failed) => {
                    prop_assert!(failed.left_over.is_empty(), "{}", failed);
                    prop_assert_eq!(state(&a), before, "{}", failed);
                }
            }
            Ok(())
        });
        outcome.unwrap();
    });
}
