//! `overflow`: subjects whose messages slow clients miss, instead of being disconnected.

use super::StartError;
use super::field::Action::Set;
use super::field::{Field, Key, bind_map};
use super::file::ValueKind;
use crate::output::{OverflowKind, OverflowRule};
use crate::subject::is_valid_filter;

const PENDING_BYTES_MAX: usize = 1024 * 1024;
/// Rules in all, at most, so that a policy's number fits its field.
const RULES_MAX: usize = 1000;

/// Adds the rules of a block to those there are.
pub(super) fn bind(rules: &mut Vec<OverflowRule>, v: &mut Field<'_>) -> Result<(), StartError> {
    v.each_entry(|entry, v| {
        let filter = &entry.key;
        if !is_valid_filter(filter.as_bytes()) {
            return Err(entry.position.error(format!("\"{filter}\" is not a valid subject")));
        }
        let rule = rule(filter, v)?;
        rules.retain(|rule| rule.filter != *filter);
        rules.push(rule);
        Ok(())
    })?;
    if rules.len() > RULES_MAX {
        return Err(v.error(format!("overflow has at most {RULES_MAX} subjects; use wildcards")));
    }
    Ok(())
}

#[derive(Default)]
struct OverflowKeys {
    kind: Option<OverflowKind>,
    pending_bytes_max: Option<usize>,
}

const RULE: &[Key<OverflowKeys>] = &[
    Key(&["policy"], Set(|g, v| kind(v).map(|kind| g.kind = Some(kind)))),
    Key(
        &["max_pending"],
        Set(|g, v| match v.size(i32::MAX.unsigned_abs())? {
            0 => Err(v.error("max_pending is at least 1; write none for 1MB")),
            bytes => {
                g.pending_bytes_max = Some(bytes);
                Ok(())
            }
        }),
    ),
];

fn rule(filter: &str, v: &mut Field<'_>) -> Result<OverflowRule, StartError> {
    let mut given = OverflowKeys::default();
    if let ValueKind::Map(map) = &v.value.kind {
        bind_map(&[RULE], map, &mut given, v.warnings)?;
    } else {
        given.kind = Some(kind(v)?);
    }
    let kind = given.kind.ok_or_else(|| v.error(format!("a policy is missing: {POLICIES}")))?;
    let pending_bytes_max = given.pending_bytes_max.unwrap_or(PENDING_BYTES_MAX);
    Ok(OverflowRule { filter: filter.to_owned(), kind, pending_bytes_max })
}

const POLICIES: &str = "it is drop_newest, drop_oldest or conflate";

fn kind(v: &Field<'_>) -> Result<OverflowKind, StartError> {
    match v.text()?.as_str() {
        "drop_newest" => Ok(OverflowKind::DropNewest),
        "drop_oldest" => Ok(OverflowKind::DropOldest),
        "conflate" => Ok(OverflowKind::Conflate),
        _ => Err(v.error(format!("no such overflow policy; {POLICIES}"))),
    }
}
