//! Which field of a mesh file stands at a position: for the errors of the parser itself, which know only the position.

use serde_saphyr::{DuplicateKeyPolicy, Location};

use super::{problem::Place, schema};
use crate::manifests::tree::Tree;

/// The field at a position, for example `workloads[3].healthy`; empty where the text is not YAML at all.
pub(super) fn field_at(text: &str, at: Location) -> String {
    let at = (at.line(), at.column());
    let options = schema::options(DuplicateKeyPolicy::LastWins);
    let tree = serde_saphyr::from_str_with_options::<Tree>(text, options);
    tree.map(|tree| last_before(&tree, &Place::ROOT, at).unwrap_or_default())
        .unwrap_or_default()
}

/// The last field that starts at the position or before it: the one that the position is in.
fn last_before(tree: &Tree, place: &Place<'_>, at: (u64, u64)) -> Option<String> {
    match tree {
        Tree::Leaf(_) => None,
        Tree::List(items) => {
            let starts: Vec<_> = items.iter().map(|item| item.referenced).collect();
            let i = last_start(&starts, at)?;
            let place = place.index(i);
            last_before(&items.get(i)?.value, &place, at).or_else(|| Some(place.to_string()))
        }
        Tree::Map(fields) => {
            let starts: Vec<_> = fields.iter().map(|(name, _)| name.referenced).collect();
            let (name, value) = fields.get(last_start(&starts, at)?)?;
            let place = place.field(&name.value);
            last_before(&value.value, &place, at).or_else(|| Some(place.to_string()))
        }
    }
}

fn last_start(starts: &[Location], at: (u64, u64)) -> Option<usize> {
    starts
        .iter()
        .rposition(|start| (start.line(), start.column()) <= at)
}
