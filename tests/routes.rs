//! Routes that are encrypted, compressed or restricted, with nats-server at either end.
//!
//! Without nats-server the mixed tests say so and pass, except under `CI`.

mod broker;

use broker::authority::Authority;
use broker::http::json;
use broker::members::{
    Kind, Original, Ours, check, config, has_original, pairs, routes, start, until,
};
use rcgen::SanType;

/// An authority that has signed a certificate `member` for the host `localhost`.
fn authority() -> Authority {
    authority_called("the authority of this test")
}

fn authority_called(name_of_authority: &str) -> Authority {
    let authority = Authority::new(name_of_authority);
    authority.sign("member", "member", vec![name("localhost")]);
    authority
}

fn name(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("a name"))
}

/// The block `tls` of a member with that certificate, who believes `roots`.
fn tls(signer: &Authority, certificate: &str, roots: &Authority, more: &str) -> String {
    let file = |kind: &str| signer.file(&format!("{certificate}.{kind}")).display().to_string();
    let (cert, key, ca) = (file("pem"), file("key"), roots.file("ca.pem").display().to_string());
    format!(
        "tls {{ cert_file: \"{cert}\", key_file: \"{key}\", ca_file: \"{ca}\", timeout: 5, \
         {more} }}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn members_with_certificates_are_one_system_whoever_dials() {
    let authority = authority();
    let block = tls(&authority, "member", &authority, "");
    for kinds in pairs() {
        let mut first = start(kinds[0], &config("a", "", &block, ""));
        let to_first = routes("localhost", &mut [&mut first]);
        let second = start(kinds[1], &config("b", &to_first, &block, ""));
        check(&first, &second).await;
        check(&second, &first).await;
        for broker in [&first, &second] {
            let cluster = &json(broker, "/varz")["cluster"];
            assert_eq!(cluster["tls_required"], true, "{kinds:?}: {cluster}");
            assert_eq!(
                (&cluster["tls_verify"], &cluster["tls_timeout"]),
                (&true.into(), &5.into())
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_known_by_its_address_alone_shows_the_certificate_of_the_configured_name() {
    let authority = authority();
    let block = tls(&authority, "member", &authority, "");
    let mut meshes = vec![[Ours(2), Ours(2), Ours(2)]];
    if has_original() {
        meshes.extend([[Ours(2), Original, Ours(2)], [Original, Ours(2), Original]]);
    }
    for kinds in meshes {
        let mut seed = start(kinds[0], &config("a", "", &block, ""));
        let to_seed = routes("localhost", &mut [&mut seed]);
        let second = start(kinds[1], &config("b", &to_seed, &block, ""));
        let third = start(kinds[2], &config("c", &to_seed, &block, ""));
        check(&second, &third).await;
        check(&third, &second).await;
    }
}

/// A pair of members who do not come to an understanding; each logs one of its lines.
fn refuse(kinds: [Kind; 2], blocks: [&str; 2], host: &str, lines: [&[&str]; 2]) {
    let mut first = start(kinds[0], &config("a", "", blocks[0], "debug: true"));
    let to_first = routes(host, &mut [&mut first]);
    let mut second = start(kinds[1], &config("b", &to_first, blocks[1], "debug: true"));
    for (broker, kind, lines) in
        [(&mut first, kinds[0], lines[0]), (&mut second, kinds[1], lines[1])]
    {
        if kind != Original && !lines.is_empty() {
            let line = broker.wait_for_line("TLS route handshake error: ");
            assert!(lines.iter().any(|text| line.contains(text)), "{kinds:?}: {line}");
            broker.wait_for_line("Router connection closed: TLS Handshake Failure");
        }
    }
    for broker in [&first, &second] {
        assert_eq!(json(broker, "/routez")["num_routes"], 0, "{kinds:?}");
    }
}

#[test]
fn who_cannot_show_a_certificate_that_holds_has_no_route() {
    let (good, bad) = (authority(), authority_called("another one"));
    good.sign("other", "other", vec![name("other.example")]);
    let known = &tls(&good, "member", &good, "");
    let stranger = &tls(&bad, "member", &good, "");
    let suspicious = &tls(&good, "member", &bad, "");
    let pinned = &tls(&good, "member", &good, &format!("pinned_certs: [\"{}\"]", "0".repeat(64)));
    for kinds in pairs() {
        let named_otherwise = &tls(&good, "other", &good, "");
        refuse(
            kinds,
            [named_otherwise, known],
            "localhost",
            [&["BadCertificate", "CertificateUnknown"], &["not valid for name"]],
        );
        refuse(kinds, [known, stranger], "localhost", [&["UnknownIssuer", "no certificate"], &[]]);
        refuse(
            kinds,
            [known, suspicious],
            "localhost",
            [&["UnknownCA", "BadCertificate"], &["UnknownIssuer"]],
        );
        refuse(kinds, [pinned, known], "localhost", [&["not one of pinned_certs"], &[]]);
        // One of them knows nothing of TLS.
        let hasty = &tls(&good, "member", &good, "timeout: 1");
        refuse(kinds, [hasty, ""], "localhost", [&["corrupt message", "timeout"], &[]]);
        refuse(kinds, ["", known], "localhost", [&[], &["corrupt message"]]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_compress_as_they_agree_whoever_dials() {
    for kinds in pairs() {
        for (modes, shown) in [
            (["accept", "accept"], ["off", "off"]),
            (["s2_fast", "accept"], ["s2_fast", "s2_fast"]),
            (["accept", "true"], ["s2_fast", "s2_fast"]),
            (["s2_best", "s2_better"], ["s2_best", "s2_better"]),
            (["{mode: s2_auto, rtt_thresholds: [60s]}", "s2_fast"], ["s2_uncompressed", "s2_fast"]),
            (["off", "s2_fast"], ["off", "off"]),
        ] {
            let block = |at: usize| format!("compression: {}", modes[at]);
            let mut first = start(kinds[0], &config("a", "", &block(0), ""));
            let to_first = routes("127.0.0.1", &mut [&mut first]);
            let second = start(kinds[1], &config("b", &to_first, &block(1), ""));
            check(&first, &second).await;
            check(&second, &first).await;
            for (broker, shown) in [(&first, shown[0]), (&second, shown[1])] {
                // What an automatic mode comes to is known after the first round trip.
                let is_shown = || async {
                    let routez = json(broker, "/routez");
                    let all = routez["routes"].as_array().expect("routes").clone();
                    all.iter().all(|route| route["compression"] == shown)
                };
                until(is_shown).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_are_compressed_within_tls() {
    let authority = authority();
    let block = tls(&authority, "member", &authority, "") + "\ncompression: s2_fast";
    for kinds in pairs() {
        let mut first = start(kinds[0], &config("a", "", &block, ""));
        let to_first = routes("localhost", &mut [&mut first]);
        let second = start(kinds[1], &config("b", &to_first, &block, ""));
        check(&first, &second).await;
        check(&second, &first).await;
    }
}
