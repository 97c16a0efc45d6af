//! What departments and projects are called on other engines: lower-case letters, digits and `-`, which all
//! of them take.

use std::collections::{BTreeMap, BTreeSet};

use super::ExportError;
use crate::policy::Tree;

/// A name as a label of the Domain Name System (RFC 1123), which is also an account's name in Slurm:
/// `Vision_2.a` is `vision-2-a`. It is a function of the name alone, so that a job finds its project without
/// the policy.
pub(crate) fn label(name: &str) -> String {
    let mut label = String::new();
    for c in name.chars() {
        match c {
            c if c.is_ascii_alphanumeric() => label.push(c.to_ascii_lowercase()),
            _ if label.ends_with('-') => {}
            _ => label.push('-'),
        }
    }
    label.truncate(63);
    let label = label.trim_matches('-');
    if label.is_empty() { "x".to_owned() } else { label.to_owned() }
}

/// The names of a tree's nodes.
#[derive(Debug)]
pub(crate) struct Names {
    of: Vec<String>,
    changed: Vec<String>,
}

impl Names {
    /// Names for all nodes; `reserved` ones mean something else on the engine. Projects come first: theirs
    /// stand in jobs.
    pub(crate) fn new(tree: &Tree, reserved: &[&str]) -> Result<Self, ExportError> {
        let mut of = vec![String::new(); tree.nodes.len()];
        let mut projects = BTreeMap::new();
        for (number, node) in tree.nodes.iter().enumerate().filter(|(_, node)| node.is_project) {
            let name = label(&node.name);
            if reserved.contains(&name.as_str()) {
                let second = node.name.clone();
                return Err(ExportError::SameName { first: name.clone(), second, name });
            }
            if let Some(first) = projects.insert(name.clone(), node.name.clone()) {
                return Err(ExportError::SameName { first, second: node.name.clone(), name });
            }
            of[number] = name;
        }
        let mut taken: BTreeSet<String> =
            projects.into_keys().chain(reserved.iter().map(|&r| r.into())).collect();
        for (number, node) in tree.nodes.iter().enumerate().filter(|(_, node)| !node.is_project) {
            of[number] = free(&label(&node.name), &taken);
            taken.insert(of[number].clone());
        }
        let differ = |(node, name): (&crate::policy::Node, &String)| {
            let kind = if node.is_project { "project" } else { "department" };
            (&node.name != name).then(|| format!("{kind} `{}` is called `{name}` there", node.name))
        };
        let changed = tree.nodes.iter().zip(&of).filter_map(differ).collect();
        Ok(Names { of, changed })
    }

    /// What a node is called.
    pub(crate) fn of(&self, node: usize) -> &str {
        &self.of[node]
    }

    /// Which have another name than in the policy, in words.
    pub(crate) fn changed(&self) -> Vec<String> {
        self.changed.clone()
    }
}

fn free(name: &str, taken: &BTreeSet<String>) -> String {
    if !taken.contains(name) {
        return name.to_owned();
    }
    let numbered = |n: u32| format!("{}-{n}", name[..name.len().min(56)].trim_end_matches('-'));
    (2..).map(numbered).find(|name| !taken.contains(name)).expect("there are more numbers than names")
}
