//! Mappings of the subjects on which clients publish.

use crate::subject::{Table, Transform, covers};

/// The mapping of the subjects that a filter matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// The filter.
    pub source: String,
    /// Destinations of a subject, one of which is drawn by weight. For the rest of a hundred it
    /// stays as it is, or is lost if the filter itself is one of the destinations.
    pub destinations: Vec<Destination>,
}

/// One of several destinations of a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// A subject, with `$1` and functions for what wildcards matched.
    pub subject: String,
    /// Messages of a hundred that go to this destination on the average.
    pub weight: u8,
    /// Name of the cluster on whose servers the destination counts, in place of those without a
    /// cluster (none).
    pub cluster: Option<String>,
}

/// The compiled mappings of one account.
#[derive(Debug)]
pub(crate) struct Mappings {
    rules: Vec<Rule>,
    /// Numbers of the rules by their sources.
    sources: Table<usize>,
}

/// The compiled mapping of one source.
#[derive(Debug)]
struct Rule {
    source: Box<[u8]>,
    /// Destinations, each with the sum of weights up to and including its own.
    destinations: Vec<(u32, Transform)>,
    /// Whether messages beyond the weights are lost; else their subject stays.
    loses: bool,
}

/// The result of mapping a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapped {
    /// The mapped subject; empty if the message is lost.
    pub(crate) subject: Box<[u8]>,
    /// Whether the same subject is mapped to the same next time.
    pub(crate) is_certain: bool,
}

const WEIGHTS: u32 = 100;

impl Mappings {
    /// The compiled mappings; `None` if there are none. Destinations of other clusters than
    /// `cluster` are left out.
    pub(crate) fn new(mappings: &[Mapping], cluster: Option<&str>) -> Option<Self> {
        let rules: Vec<_> = mappings.iter().map(|mapping| Rule::new(mapping, cluster)).collect();
        let mut sources = Table::new();
        for (number, rule) in rules.iter().enumerate() {
            *sources.entry(&rule.source) = number;
        }
        (!rules.is_empty()).then_some(Self { rules, sources })
    }

    /// Returns the filters of the subjects that are mapped, which leaf nodes and hubs are told as
    /// interest.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &[u8]> {
        self.rules.iter().map(|rule| &*rule.source)
    }

    /// Whether exactly this filter is mapped.
    pub(crate) fn is_source(&self, filter: &[u8]) -> bool {
        self.sources.get(filter).is_some()
    }

    /// Maps a subject by the first mapping of the configuration that has it as source.
    pub(crate) fn map(&self, subject: &[u8], rng: &mut fastrand::Rng) -> Option<Mapped> {
        let mut first = usize::MAX;
        self.sources.for_each_match(subject, |number| {
            // A subject that ends in `>` is more than a `*` stands for.
            if *number < first && covers(&self.rules[*number].source, subject) {
                first = *number;
            }
        });
        self.rules.get(first)?.apply(subject, rng)
    }
}

impl Rule {
    fn new(mapping: &Mapping, cluster: Option<&str>) -> Self {
        let all = &mapping.destinations;
        let has_own = all.iter().any(|d| cluster.is_some() && d.cluster.as_deref() == cluster);
        let cluster = cluster.filter(|_| has_own);
        let ours = || all.iter().filter(|d| d.cluster.as_deref() == cluster);
        let mut sum = 0;
        let destinations = ours().filter_map(|destination| {
            sum += u32::from(destination.weight);
            let (from, to) = (mapping.source.as_bytes(), destination.subject.as_bytes());
            // The configuration was checked.
            Transform::new(from, to).ok().map(|transform| (sum, transform))
        });
        Self {
            source: mapping.source.as_bytes().into(),
            destinations: destinations.collect(),
            loses: ours().any(|destination| destination.subject == mapping.source),
        }
    }

    fn apply(&self, subject: &[u8], rng: &mut fastrand::Rng) -> Option<Mapped> {
        let (weight, draw) = match &self.destinations[..] {
            [] => return None,
            [(WEIGHTS, _)] => (WEIGHTS, 0),
            all => (all.last().map_or(0, |(sum, _)| *sum), rng.u32(..WEIGHTS)),
        };
        let drawn = self.destinations.iter().find(|(sum, _)| draw < *sum);
        let is_only = self.destinations.len() == 1 && weight == WEIGHTS;
        let Some((_, transform)) = drawn else {
            let subject: &[u8] = if self.loses { b"" } else { subject };
            return Some(Mapped { subject: subject.into(), is_certain: weight == 0 });
        };
        let mut mapped = Vec::new();
        transform.apply(subject, rng, &mut mapped);
        Some(Mapped { subject: mapped.into(), is_certain: is_only && transform.is_certain() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(source: &str, destinations: &[(&str, u8, Option<&str>)]) -> Mapping {
        let destination = |(subject, weight, cluster): &(&str, u8, Option<&str>)| Destination {
            subject: (*subject).to_owned(),
            weight: *weight,
            cluster: cluster.map(str::to_owned),
        };
        let destinations = destinations.iter().map(destination).collect();
        Mapping { source: source.to_owned(), destinations }
    }

    /// Returns the results of mapping `subject` a thousand times, each with its count.
    fn drawn(mappings: &[Mapping], cluster: Option<&str>, subject: &str) -> Vec<(String, u32)> {
        let mappings = Mappings::new(mappings, cluster).unwrap();
        let mut rng = fastrand::Rng::with_seed(1);
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..1000 {
            let mapped = mappings.map(subject.as_bytes(), &mut rng);
            let name = mapped.map_or(b"(none)".as_slice().into(), |mapped| mapped.subject);
            *counts.entry(String::from_utf8(name.into()).unwrap()).or_insert(0) += 1;
        }
        counts.into_iter().collect()
    }

    fn nearly(found: &[(String, u32)], expected: &[(&str, u32)]) {
        let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, expected.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        for ((name, count), (_, expected)) in found.iter().zip(expected) {
            assert!(count.abs_diff(*expected) <= 60, "{name}: {count} for {expected}");
        }
    }

    #[test]
    fn what_weights_leave_stays_or_is_lost_if_the_source_is_among_the_destinations() {
        let canary = [mapping("foo", &[("bar", 30, None), ("baz", 20, None)])];
        nearly(&drawn(&canary, None, "foo"), &[("bar", 300), ("baz", 200), ("foo", 500)]);
        let loss = [mapping("foo", &[("foo", 30, None)])];
        nearly(&drawn(&loss, None, "foo"), &[("", 700), ("foo", 300)]);
        let none = [mapping("foo", &[("bar", 0, None)])];
        nearly(&drawn(&none, None, "foo"), &[("foo", 1000)]);
    }

    #[test]
    fn a_cluster_has_its_own_destinations_or_those_of_all() {
        let mappings = [mapping("a.*", &[("x.$1", 100, Some("X")), ("y.$1", 100, None)])];
        nearly(&drawn(&mappings, Some("X"), "a.b"), &[("x.b", 1000)]);
        nearly(&drawn(&mappings, Some("Z"), "a.b"), &[("y.b", 1000)]);
        nearly(&drawn(&mappings, None, "a.b"), &[("y.b", 1000)]);
    }

    #[test]
    fn the_first_mapping_that_matches_counts_and_only_that() {
        let rules = [("*", "one.$1"), ("a", "two"), ("a.*", "three.$1"), (">", "four.>")];
        let mappings: Vec<_> =
            rules.iter().map(|(from, to)| mapping(from, &[(to, 100, None)])).collect();
        nearly(&drawn(&mappings, None, "a"), &[("one.a", 1000)]);
        nearly(&drawn(&mappings, None, "a.b"), &[("three.b", 1000)]);
        nearly(&drawn(&mappings, None, "a.>"), &[("four.a.>", 1000)]);
        nearly(&drawn(&mappings, None, "a."), &[("(none)", 1000)]);
    }
}
