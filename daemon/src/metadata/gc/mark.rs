//! Following references from the roots.

use std::collections::HashMap;

use super::Node;
use super::graph::{Edge, Graph, Level};
use crate::metadata::Namespace;

/// What is held in each namespace, and how.
#[derive(Default)]
pub(super) struct Marked {
    namespaces: HashMap<Namespace, Marks>,
    /// Objects that nothing but their youth keeps.
    pub(super) spared: usize,
}

struct Marks {
    levels: HashMap<Node, (Level, bool)>,
    /// What lives while another object does.
    dependants: HashMap<Node, Vec<Node>>,
}

impl Marked {
    /// Marks one namespace.
    pub(super) fn add(&mut self, namespace: Namespace, graph: Graph) {
        let (levels, spared) = follow(&graph);
        self.spared += spared;
        let mut names: Vec<Option<&Node>> = vec![None; graph.present.len()];
        for (node, id) in &graph.ids {
            names[*id as usize] = Some(node);
        }
        let mut dependants: HashMap<Node, Vec<Node>> = HashMap::new();
        for &(on, dependant) in &graph.back {
            if let (Some(on), Some(dependant)) = (names[on as usize], names[dependant as usize]) {
                dependants.entry(on.clone()).or_default().push(dependant.clone());
            }
        }
        let levels = graph
            .ids
            .into_iter()
            .map(|(node, id)| (node, (levels[id as usize], graph.present[id as usize])))
            .collect();
        self.namespaces.insert(namespace, Marks { levels, dependants });
    }

    /// How an object is held.
    pub(super) fn level(&self, namespace: &Namespace, node: &Node) -> Level {
        self.namespaces
            .get(namespace)
            .and_then(|marks| marks.levels.get(node))
            .map_or(Level::None, |(level, _)| *level)
    }

    /// What lives while this object does.
    pub(super) fn dependants(&self, namespace: &Namespace, node: &Node) -> &[Node] {
        self.namespaces
            .get(namespace)
            .and_then(|marks| marks.dependants.get(node))
            .map_or(&[], Vec::as_slice)
    }

    /// What nothing holds, in a fixed order.
    pub(super) fn garbage(&self) -> Vec<(Namespace, Node)> {
        let mut garbage = Vec::new();
        for (namespace, marks) in &self.namespaces {
            for (node, (level, present)) in &marks.levels {
                if *present && *level == Level::None {
                    garbage.push((namespace.clone(), node.clone()));
                }
            }
        }
        garbage.sort_unstable();
        garbage
    }
}

/// The level of each object, by number, and how many only their youth keeps.
fn follow(graph: &Graph) -> (Vec<Level>, usize) {
    let mut edges = graph.edges.clone();
    edges.sort_unstable_by_key(|(from, to, _)| (*from, *to));
    let mut starts = vec![0_usize; graph.present.len() + 1];
    for (from, _, _) in &edges {
        starts[*from as usize + 1] += 1;
    }
    for index in 1..starts.len() {
        starts[index] += starts[index - 1];
    }
    let mut levels = vec![Level::None; graph.present.len()];
    let spread = |levels: &mut Vec<Level>, roots: &[u32]| {
        let mut open: Vec<(u32, Level)> = roots.iter().map(|id| (*id, Level::Full)).collect();
        while let Some((id, level)) = open.pop() {
            let index = id as usize;
            // What is not there holds nothing, not even what refers back to it.
            if !graph.present[index] || levels[index] >= level {
                continue;
            }
            levels[index] = level;
            for (_, to, edge) in &edges[starts[index]..starts[index + 1]] {
                match edge {
                    Edge::Full if level == Level::Full => open.push((*to, Level::Full)),
                    Edge::Full => {}
                    Edge::Chain => open.push((*to, level)),
                    Edge::Flat => open.push((*to, Level::Flat)),
                }
            }
        }
    };
    spread(&mut levels, &graph.roots);
    let spared = graph.fresh.iter().filter(|id| levels[**id as usize] == Level::None).count();
    spread(&mut levels, &graph.fresh);
    (levels, spared)
}
