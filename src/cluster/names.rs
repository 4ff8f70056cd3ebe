//! Whether two servers belong to one cluster.

/// What follows from two names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    /// Both are of one cluster.
    Keep,
    /// They are if this server takes the other's name for it.
    Adopt,
    /// They are not.
    Refuse,
}

/// Compares the own name and that of a peer, each with whether it was made up.
///
/// What was configured wins over what was made up, and the greater of two made-up names wins.
pub fn agree((own, is_own_dynamic): (&str, bool), (other, is_dynamic): (&str, bool)) -> Agreement {
    match (is_own_dynamic, is_dynamic) {
        _ if own == other => Agreement::Keep,
        (true, false) if !other.is_empty() => Agreement::Adopt,
        (true, true) if other > own => Agreement::Adopt,
        // The other one will adopt ours, and come again.
        _ => Agreement::Refuse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_servers_never_both_keep_different_names() {
        for (own, other) in [("a", "b"), ("b", "a"), ("a", "a")] {
            for (is_own_dynamic, is_dynamic) in
                [(false, false), (false, true), (true, false), (true, true)]
            {
                let here = agree((own, is_own_dynamic), (other, is_dynamic));
                let there = agree((other, is_dynamic), (own, is_own_dynamic));
                let adopted = [here, there].iter().filter(|a| **a == Agreement::Adopt).count();
                match own == other {
                    true => assert_eq!((here, there), (Agreement::Keep, Agreement::Keep)),
                    false => assert_eq!(adopted, usize::from(is_own_dynamic || is_dynamic)),
                }
            }
        }
    }
}
