//! Names of clusters: whether two servers belong to one.

/// The outcome of a comparison of two names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    /// One cluster.
    Keep,
    /// One cluster, if this server adopts the other's name.
    Adopt,
    /// Two clusters.
    Refuse,
}

/// The name of a cluster, as one of its members gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterName<'a> {
    /// The name.
    pub name: &'a str,
    /// Whether the name was made up, not configured.
    pub is_dynamic: bool,
}

impl ClusterName<'_> {
    /// Returns the outcome for a member with this name that meets a peer with the other.
    ///
    /// A configured name wins over one that was made up, and the greater of two made-up names wins.
    pub fn agree(self, other: Self) -> Agreement {
        match (self.is_dynamic, other.is_dynamic) {
            _ if self.name == other.name => Agreement::Keep,
            (true, false) if !other.name.is_empty() => Agreement::Adopt,
            (true, true) if other.name > self.name => Agreement::Adopt,
            // The other server will adopt this one's name, and come again.
            _ => Agreement::Refuse,
        }
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
                let own = ClusterName { name: own, is_dynamic: is_own_dynamic };
                let other = ClusterName { name: other, is_dynamic };
                let (here, there) = (own.agree(other), other.agree(own));
                let adopted = [here, there].iter().filter(|a| **a == Agreement::Adopt).count();
                match own.name == other.name {
                    true => assert_eq!((here, there), (Agreement::Keep, Agreement::Keep)),
                    false => assert_eq!(adopted, usize::from(is_own_dynamic || is_dynamic)),
                }
            }
        }
    }
}
