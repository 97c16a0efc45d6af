//! Whose answers stand first in a file, by the answers' ids.

use std::collections::BTreeMap;
use std::path::Path;

use super::files::Opened;
use super::{Order, RatingsError, RatingsKind};

/// The order in each file.
pub(super) fn of_all(files: &[Opened]) -> Result<Vec<Order>, RatingsError> {
    let owners = owners(files);
    files.iter().map(|file| order(file, &owners)).collect()
}

/// Whose answers there are, by kind of ratings, folder and id: the systems that all files with the id have in
/// common.
type Owners<'a> = BTreeMap<(RatingsKind, Option<&'a Path>, &'a str), Vec<&'a str>>;

fn owners(files: &[Opened]) -> Owners<'_> {
    let mut owners: Owners = BTreeMap::new();
    for file in files {
        let names = file.names.each_ref().map(String::as_str);
        for id in file.lines.iter().flat_map(|line| line.answers.iter().flatten()) {
            let possible =
                owners.entry((file.kind, file.path.parent(), id)).or_insert_with(|| names.to_vec());
            possible.retain(|name| names.contains(name));
        }
    }
    owners
}

/// Whose answers stand first in a file, by the ids that belong to one of both systems alone.
fn order(file: &Opened, owners: &Owners<'_>) -> Result<Order, RatingsError> {
    let (mut as_named, mut reversed) = (0_usize, 0_usize);
    for line in &file.lines {
        // At which place of the name the owner of each answer stands.
        let [first, second] = line.answers.each_ref().map(|id| {
            let owner = owners.get(&(file.kind, file.path.parent(), id.as_deref()?))?;
            let [owner] = owner.as_slice() else { return None };
            file.names.iter().position(|name| name == owner)
        });
        // Equal answers of several systems have one id, which then seems to be that of whom they all met: a
        // line whose answers are both one system's says nothing.
        match (first, second) {
            (Some(0), Some(1) | None) | (None, Some(1)) => as_named += 1,
            (Some(1), Some(0) | None) | (None, Some(0)) => reversed += 1,
            _ => {}
        }
    }
    let (more, fewer) = (as_named.max(reversed), as_named.min(reversed));
    if fewer * 10 > more {
        let problem = format!(
            "by the ids, `{}` stands first in {as_named} lines and `{}` in {reversed}; a file has one order",
            file.names[0], file.names[1]
        );
        return Err(RatingsError::Order { path: file.path.clone(), problem });
    }
    Ok(match (as_named, reversed) {
        (0, 0) => Order::ByNameAlone,
        _ if as_named > reversed => Order::AsNamed,
        _ => Order::Reversed,
    })
}
