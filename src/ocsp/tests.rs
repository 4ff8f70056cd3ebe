//! Tests of answers: who has signed them, about whom they are, and when they hold.

use proptest::prelude::*;

use super::testing::{Answering, TestAuthority, link};
use super::{CertAnswer, CertLink, CertStatus, PeerPolicy, is_must_staple, links};

const NOW: i64 = 1_800_000_000;
const GOOD: Answering =
    Answering { status: CertStatus::Good, from: NOW - 10, to: Some(NOW + 3600) };

#[test]
fn an_answer_is_what_the_issuer_has_signed_about_this_certificate() {
    let authority = TestAuthority::new("ca");
    let link = link(&authority.issue("a", false, None).0, &authority);
    let request = link.request().unwrap();
    for status in [CertStatus::Good, CertStatus::Revoked, CertStatus::Unknown] {
        let answer = authority.answer(&request, Answering { status, ..GOOD });
        let wanted = CertAnswer { status, this_update: NOW - 10, next_update: Some(NOW + 3600) };
        assert_eq!(link.judge(&answer, NOW), Ok(wanted));
    }
    let without_end = authority.answer(&request, Answering { to: None, ..GOOD });
    assert_eq!(link.judge(&without_end, NOW).unwrap().next_update, None);
}

#[test]
fn nobody_else_answers_for_the_issuer() {
    let (authority, liar) = (TestAuthority::new("ca"), TestAuthority::new("ca"));
    let link = link(&authority.issue("a", false, None).0, &authority);
    let request = link.request().unwrap();
    let refused = |answer: &[u8]| link.judge(answer, NOW).unwrap_err();
    let unsigned = "the answer is not signed by the issuer, nor by its delegate";
    assert_eq!(refused(&liar.answer(&request, GOOD)), unsigned);
    assert_eq!(refused(&liar.answer_by_delegate(&request, GOOD, true)), unsigned);
    assert_eq!(refused(&authority.answer_by_delegate(&request, GOOD, false)), unsigned);
    let today = chrono::Utc::now().timestamp();
    assert!(link.judge(&authority.answer_by_delegate(&request, GOOD, true), today).is_ok());
    let late = 100_000_000_000;
    let delegates = authority.answer_by_delegate(&request, GOOD, true);
    assert_eq!(link.judge(&delegates, late), Err(unsigned.to_owned()), "its time is over");
}

#[test]
fn an_answer_about_another_certificate_says_nothing_about_this_one() {
    let authority = TestAuthority::new("ca");
    let [own, other] =
        ["a", "b"].map(|name| link(&authority.issue(name, false, None).0, &authority));
    let answer = authority.answer(&other.request().unwrap(), GOOD);
    assert_eq!(own.judge(&answer, NOW), Err("the answer is about another certificate".to_owned()));
}

#[test]
fn an_answer_holds_between_its_times_give_or_take_the_skew() {
    let answer = |to| CertAnswer { status: CertStatus::Good, this_update: 100, next_update: to };
    let ended = answer(Some(200));
    assert!(ended.is_current(200, 0, None) && !ended.is_current(201, 0, None));
    assert!(ended.is_current(230, 30, None) && !ended.is_current(231, 30, None));
    assert!(!ended.is_current(99, 0, None) && ended.is_current(70, 30, None));
    assert!(answer(None).is_current(i64::MAX, 0, None));
    assert!(
        answer(None).is_current(150, 0, Some(50)) && !answer(None).is_current(151, 0, Some(50))
    );
}

#[test]
fn a_certificate_names_its_responders_and_demands_staples() {
    let authority = TestAuthority::new("ca");
    let (plain, _) = authority.issue("a", false, None);
    let (must, _) = authority.issue("a", true, Some("http://127.0.0.1:1/ocsp"));
    assert!(!is_must_staple(&plain) && is_must_staple(&must) && !is_must_staple(b"junk"));
    assert!(link(&plain, &authority).responders().is_empty());
    assert_eq!(link(&must, &authority).responders(), ["http://127.0.0.1:1/ocsp"]);
    let (odd, _) = authority.issue("a", true, Some("ldap://127.0.0.1:1/ocsp"));
    assert!(link(&odd, &authority).responders().is_empty(), "only HTTP is asked");
    assert_eq!(link(&plain, &authority).subject(), "CN=a");
}

#[test]
fn links_lead_by_signatures_and_not_by_names_alone() {
    let (authority, namesake) = (TestAuthority::new("ca"), TestAuthority::new("ca"));
    let (cert, _) = authority.issue("a", false, None);
    let found = |authorities: &[&[u8]]| links(&[&cert], authorities, NOW).map(|links| links.len());
    assert_eq!(found(&[&namesake.der, &authority.der]), Some(1));
    assert_eq!(found(&[&namesake.der]), None);
    assert_eq!(
        links(&[&authority.der], &[&authority.der], NOW),
        Some(Vec::new()),
        "one of its own"
    );
    let nobody: [&[u8]; 0] = [];
    assert_eq!(links(&nobody, &[&authority.der], NOW), None);
    let candidates = [b"junk".as_slice(), &namesake.der, &authority.der];
    assert!(CertLink::find(&cert, candidates.into_iter()).is_some());
}

#[test]
fn only_authorities_stand_between_a_peer_and_those_who_are_trusted() {
    let root = TestAuthority::new("root");
    let between = root.intermediate("between");
    let (peer, _) = between.issue("peer", false, Some("http://127.0.0.1:1/ocsp"));
    // Whoever holds a good certificate signs a copy of the authority's that names no responder.
    let (accomplice, key) = root.issue("accomplice", false, None);
    let forged = between.forged("accomplice", &key);
    let issuers = |shown: &[&[u8]]| {
        let links = links(shown, &[&root.der], NOW)?;
        Some(links.iter().map(CertLink::issuer).collect::<Vec<_>>())
    };
    let way = Some(vec!["CN=between".to_owned(), "CN=root".to_owned()]);
    assert_eq!(issuers(&[&peer, &between.der]), way);
    assert_eq!(issuers(&[&peer, &accomplice, &between.der]), way);
    let dead_end = issuers(&[&peer, &forged, &accomplice, &between.der]);
    assert!(dead_end.is_none() || dead_end == way, "{dead_end:?}");
}

#[test]
fn a_policy_says_which_status_is_enough() {
    let strict = PeerPolicy::default();
    let lax = PeerPolicy { unknown_is_good: true, ..PeerPolicy::default() };
    for (status, by_strict, by_lax) in [
        (CertStatus::Good, true, true),
        (CertStatus::Unknown, false, true),
        (CertStatus::Revoked, false, false),
    ] {
        assert_eq!((strict.accepts(status), lax.accepts(status)), (by_strict, by_lax));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_change_of_an_answer_is_believed(at in 0_usize..2000, flip in 1_u8..) {
        let authority = TestAuthority::new("ca");
        let link = link(&authority.issue("a", false, None).0, &authority);
        let revoked = Answering { status: CertStatus::Revoked, ..GOOD };
        let mut answer = authority.answer(&link.request().unwrap(), revoked);
        let at = at % answer.len();
        answer[at] ^= flip;
        if let Ok(judged) = link.judge(&answer, NOW) {
            prop_assert_eq!(judged.status, CertStatus::Revoked);
        }
    }

    #[test]
    fn junk_is_no_answer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let authority = TestAuthority::new("ca");
        let link = link(&authority.issue("a", false, None).0, &authority);
        prop_assert!(link.judge(&bytes, NOW).is_err());
    }
}
