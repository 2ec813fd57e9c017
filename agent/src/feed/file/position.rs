//! Which field of a mesh file stands at a position: for the errors of the parser itself, which know only the position.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{DuplicateKeyPolicy, Location, Spanned};

use super::{
    problem::Place,
    schema::{self, Text},
};

/// The field at a position, for example `workloads[3].healthy`; empty where the text is not YAML at all.
pub(super) fn field_at(text: &str, at: Location) -> String {
    let at = (at.line(), at.column());
    let options = schema::options(DuplicateKeyPolicy::LastWins);
    let tree = serde_saphyr::from_str_with_options::<Tree>(text, options);
    tree.map(|tree| last_before(&tree, &Place::ROOT, at).unwrap_or_default())
        .unwrap_or_default()
}

/// A YAML document of any shape: only its fields and their positions.
enum Tree {
    Map(Vec<(Text, Spanned<Tree>)>),
    List(Vec<Spanned<Tree>>),
    Leaf,
}

/// The last field that starts at the position or before it: the one that the position is in.
fn last_before(tree: &Tree, place: &Place<'_>, at: (u64, u64)) -> Option<String> {
    match tree {
        Tree::Leaf => None,
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

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Tree::Map(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Tree::List(items))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_str<E>(self, _: &str) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }
}
