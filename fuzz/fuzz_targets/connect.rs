//! Whatever a CONNECT says: its fields or an error, the same where names differ in case only, and
//! the error does not repeat what was sent.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shardcast::proto::Connect;

fuzz_target!(|json: &[u8]| {
    let mut connect = Connect::default();
    match connect.apply(json) {
        Ok(()) => {
            // What is there already stays when it is said again.
            let mut again = connect.clone();
            assert_eq!(again.apply(json), Ok(()));
            assert_eq!(again, connect);
            // Nothing is made up: texts are no longer than what was sent, replaced bytes aside.
            let texts = [&connect.user, &connect.pass, &connect.name, &connect.jwt];
            assert!(texts.iter().all(|text| text.len() <= 3 * json.len()));
        }
        Err(error) => assert!(error.column <= json.len() + 1, "{error}"),
    }
});
