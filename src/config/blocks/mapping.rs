//! `mappings`: subjects that are replaced by others when a message is published.

use super::StartError;
use super::field::Action::Set;
use super::field::{Field, Key, bind_map};
use super::file::ValueKind;
use super::mistakes::all;
use crate::engine::{Destination, Mapping};
use crate::subject::{Transform, is_valid_filter};

const WEIGHTS_MAX: u32 = 100;

/// Adds the mappings of a block to those there are; of two for one filter the later counts.
pub(super) fn bind(mappings: &mut Vec<Mapping>, v: &mut Field<'_>) -> Result<(), StartError> {
    v.each_entry(|entry, v| {
        let source = &entry.key;
        if !is_valid_filter(source.as_bytes()) {
            return Err(entry.position.error(format!("\"{source}\" is not a valid subject")));
        }
        let destinations = destinations(v)?;
        all(objections(source, &destinations).map(|reason| Err::<(), _>(v.error(reason))))?;
        mappings.retain(|mapping| mapping.source != *source);
        mappings.push(Mapping { source: source.clone(), destinations });
        Ok(())
    })
    .map(drop)
}

fn destinations(v: &mut Field<'_>) -> Result<Vec<Destination>, StartError> {
    match &v.value.kind {
        ValueKind::Text(subject) => {
            Ok(vec![Destination { subject: subject.clone(), weight: 100, cluster: None }])
        }
        ValueKind::Map(_) => Ok(vec![destination(v)?]),
        ValueKind::List(_) => v.each(destination),
        _ => Err(v.error(format!(
            "a mapping is a subject, or a list of destinations, as in \
             {}: [{{destination: a, weight: 10%}}]",
            v.key
        ))),
    }
}

#[derive(Default)]
struct DestinationKeys {
    subject: Option<String>,
    weight: Option<u8>,
    cluster: Option<String>,
}

const DESTINATION: &[Key<DestinationKeys>] = &[
    Key(&["dest", "destination"], Set(|d, v| v.text().map(|to| d.subject = Some(to)))),
    Key(&["weight"], Set(|d, v| weight(v).map(|weight| d.weight = Some(weight)))),
    Key(&["cluster"], Set(|d, v| v.text().map(|name| d.cluster = Some(name)))),
];

fn destination(v: &mut Field<'_>) -> Result<Destination, StartError> {
    let mut given = DestinationKeys::default();
    bind_map(&[DESTINATION], v.map()?, &mut given, v.warnings)?;
    let subject = given.subject.ok_or_else(|| {
        v.error("a mapping needs a destination, as in {destination: a, weight: 10%}")
    })?;
    let weight = given.weight.ok_or_else(|| {
        v.error(format!("destination \"{subject}\" needs a weight, as in weight: 10%"))
    })?;
    Ok(Destination { subject, weight, cluster: given.cluster.filter(|name| !name.is_empty()) })
}

/// Reads a percentage from 0 to 100, with or without the sign.
fn weight(v: &Field<'_>) -> Result<u8, StartError> {
    let weight = match &v.value.kind {
        ValueKind::Integer(weight) => u8::try_from(*weight).ok(),
        ValueKind::Text(text) => text.strip_suffix('%').unwrap_or(text).parse().ok(),
        _ => None,
    };
    let weight = weight.filter(|weight| u32::from(*weight) <= WEIGHTS_MAX);
    weight.ok_or_else(|| v.error("weight is a whole number from 0 to 100, with or without %"))
}

/// Returns the mistakes in the destinations of a filter.
pub(super) fn objections(
    source: &str,
    destinations: &[Destination],
) -> impl Iterator<Item = String> {
    let each = destinations.iter().filter_map(move |Destination { subject, .. }| {
        let error = Transform::new(source.as_bytes(), subject.as_bytes()).err()?;
        Some(format!("mapping for \"{source}\" to \"{subject}\": {error}"))
    });
    each.chain(check_together(destinations).err())
}

fn check_together(destinations: &[Destination]) -> Result<(), String> {
    for (at, one) in destinations.iter().enumerate() {
        let alike = || destinations.iter().filter(|other| other.cluster == one.cluster);
        let sum: u32 = alike().map(|other| u32::from(other.weight)).sum();
        if sum > WEIGHTS_MAX {
            return Err(format!("the weights add up to {sum}; make them 100 at most"));
        }
        let twice =
            |other: &&Destination| other.cluster == one.cluster && other.subject == one.subject;
        if destinations[..at].iter().any(|other| twice(&other)) {
            return Err(format!("destination \"{}\" appears twice; keep one", one.subject));
        }
    }
    Ok(())
}
