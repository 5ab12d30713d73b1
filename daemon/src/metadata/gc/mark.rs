//! Following references from the roots.

use std::collections::HashMap;

use super::Node;
use super::graph::{Edge, Graph, Level};
use crate::metadata::Namespace;

/// What is held in each namespace, and how.
#[derive(Default)]
pub(super) struct Marked {
    namespaces: HashMap<Namespace, Marks>,
    /// What nothing holds; what refers comes before what it refers to.
    garbage: Vec<(Namespace, Node)>,
    /// Objects that nothing but their youth keeps.
    pub(super) spared: usize,
}

struct Marks {
    levels: HashMap<Node, Level>,
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
        for id in order(&graph, &levels) {
            if let Some(node) = names[id as usize] {
                self.garbage.push((namespace.clone(), node.clone()));
            }
        }
        let levels = graph.ids.into_iter().map(|(node, id)| (node, levels[id as usize])).collect();
        self.namespaces.insert(namespace, Marks { levels, dependants });
    }

    /// How an object is held.
    pub(super) fn level(&self, namespace: &Namespace, node: &Node) -> Level {
        self.namespaces
            .get(namespace)
            .and_then(|marks| marks.levels.get(node))
            .copied()
            .unwrap_or_default()
    }

    /// What lives while this object does.
    pub(super) fn dependants(&self, namespace: &Namespace, node: &Node) -> &[Node] {
        self.namespaces
            .get(namespace)
            .and_then(|marks| marks.dependants.get(node))
            .map_or(&[], Vec::as_slice)
    }

    /// What nothing holds; what refers to something comes before it, so that whatever is left
    /// while some of it has been removed is complete.
    pub(super) fn take_garbage(&mut self) -> Vec<(Namespace, Node)> {
        std::mem::take(&mut self.garbage)
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

/// The garbage by number, what refers before what is referred to. Where references run in a
/// circle, somewhere in it one does not.
fn order(graph: &Graph, levels: &[Level]) -> Vec<u32> {
    let garbage = |id: u32| graph.present[id as usize] && levels[id as usize] == Level::None;
    let mut below: HashMap<u32, Vec<u32>> = HashMap::new();
    for &(from, to, _) in graph.edges.iter().filter(|(from, to, _)| garbage(*from) && garbage(*to))
    {
        below.entry(from).or_default().push(to);
    }
    let mut seen = vec![false; levels.len()];
    let mut finished = Vec::new();
    for start in (0..levels.len()).filter_map(|id| u32::try_from(id).ok()).filter(|id| garbage(*id))
    {
        // Depth first without recursion: chains are as long as clients make them.
        let mut open = vec![(start, false)];
        while let Some((id, left)) = open.pop() {
            if left {
                finished.push(id);
            } else if !std::mem::replace(&mut seen[id as usize], true) {
                open.push((id, true));
                let next = below.get(&id).into_iter().flatten();
                open.extend(next.filter(|to| !seen[**to as usize]).map(|to| (*to, false)));
            }
        }
    }
    finished.reverse();
    finished
}
