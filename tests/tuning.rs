//! The files of `tuning/`, and those for packages and images, as far as they can be tried without
//! changing this host.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Where a host's files are, and what is in them.
type Files = BTreeMap<&'static str, &'static str>;

/// A host with four CPUs and a card with one receive and two send queues.
fn host() -> (tempfile::TempDir, Files) {
    let files = Files::from([
        ("sys/devices/system/cpu/online", "0-3"),
        ("sys/class/net/eth0/queues/rx-0/rps_cpus", "0"),
        ("sys/class/net/eth0/queues/rx-0/rps_flow_cnt", "0"),
        ("sys/class/net/eth0/queues/tx-0/xps_cpus", "0"),
        ("sys/class/net/eth0/queues/tx-1/xps_cpus", "0"),
        ("sys/class/net/eth0/device/msi_irqs/30", "msix"),
        ("sys/class/net/eth0/device/msi_irqs/31", "msix"),
        ("sys/class/net/eth0/device/msi_irqs/32", "msix"),
        ("proc/irq/30/smp_affinity_list", "0-3"),
        ("proc/irq/31/smp_affinity_list", "0-3"),
        ("proc/irq/32/smp_affinity_list", "0-3"),
        (
            "proc/interrupts",
            "  30:  1  2  PCI-MSIX  0-edge  eth0-config\n  31:  1  2  PCI-MSIX  1-edge  \
             eth0-TxRx-0\n  32:  1  2  PCI-MSIX  2-edge  eth0-TxRx-1@pci:0000\n",
        ),
        ("proc/sys/net/core/rps_sock_flow_entries", "0"),
        ("run/.keep", ""),
    ]);
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in &files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    (dir, files)
}

/// What the files are now, of those that there were.
fn now(dir: &Path, files: &Files) -> BTreeMap<&'static str, String> {
    let text = |path: &&'static str| fs::read_to_string(dir.join(path)).unwrap().trim().to_owned();
    files.keys().map(|path| (*path, text(path))).collect()
}

fn nic_queues(dir: &Path, args: &[&str]) -> (Option<i32>, String) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tuning/nic-queues");
    let mut command = Command::new(script);
    let output = command.args(args).env("SHARDCAST_ROOT", dir).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[test]
fn a_dry_run_prints_what_it_would_do_and_does_nothing() {
    let (dir, files) = host();
    let before = now(dir.path(), &files);
    let (status, said) = nic_queues(dir.path(), &["--dry-run", "eth0"]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("echo 1 > /proc/irq/32/smp_affinity_list    # now 0-3"), "{said}");
    assert!(said.lines().all(|line| line.starts_with("echo ")), "{said}");
    assert_eq!(now(dir.path(), &files), before);
    assert!(!dir.path().join("run/shardcast-nic-queues.eth0").exists());
}

#[test]
fn queues_get_cpus_of_their_own_and_a_revert_puts_everything_back() {
    let (dir, files) = host();
    let before = now(dir.path(), &files);
    // A second run has nothing to do, and must not forget what was there before the first.
    for _ in 0..2 {
        assert_eq!(nic_queues(dir.path(), &["eth0", "1,3"]), (Some(0), String::new()));
    }
    let after = now(dir.path(), &files);
    let wanted = [
        ("proc/irq/30/smp_affinity_list", "0-3"),
        ("proc/irq/31/smp_affinity_list", "1"),
        ("proc/irq/32/smp_affinity_list", "3"),
        ("proc/sys/net/core/rps_sock_flow_entries", "32768"),
        ("sys/class/net/eth0/queues/rx-0/rps_cpus", "a"),
        ("sys/class/net/eth0/queues/rx-0/rps_flow_cnt", "32768"),
        ("sys/class/net/eth0/queues/tx-0/xps_cpus", "2"),
        ("sys/class/net/eth0/queues/tx-1/xps_cpus", "8"),
    ];
    for (path, value) in wanted {
        assert_eq!(after[path], value, "{path}");
    }
    assert_eq!(nic_queues(dir.path(), &["--revert", "eth0"]), (Some(0), String::new()));
    assert_eq!(now(dir.path(), &files), before);
    assert_eq!(nic_queues(dir.path(), &["--revert", "eth0"]).0, Some(2));
}

#[test]
fn a_wrong_call_changes_nothing() {
    let (dir, files) = host();
    let before = now(dir.path(), &files);
    for args in [&["eth7"][..], &["eth0", "0-x"], &["--force", "eth0"], &[], &["../../.."]] {
        let (status, said) = nic_queues(dir.path(), args);
        assert_eq!((status, said.lines().count()), (Some(2), 1), "{args:?}: {said}");
    }
    assert_eq!(now(dir.path(), &files), before);
}

/// Files that `tuning/package` writes before they are packed.
const MADE: &str = "target/";

#[test]
fn all_that_packages_and_images_are_made_of_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    let manifest = read("Cargo.toml");
    let (_, assets) = manifest.split_once("assets = [").unwrap();
    let assets = assets.split_once("\n]").unwrap().0.lines().map(str::trim);
    let sources: Vec<&str> = assets.filter_map(|line| line.split('"').nth(1)).collect();
    assert!(sources.len() > 8, "{sources:?}");
    for source in sources.iter().filter(|source| !source.starts_with(MADE)) {
        let source = source.split_once("/*").map_or(*source, |(directory, _)| directory);
        assert!(root.join(source).exists(), "{source}");
    }
    // What the image, the compose file and the chart say of one another.
    let unit = read("tuning/systemd/shardcast.service");
    for (file, text, wanted) in [
        ("compose.yaml", read("compose.yaml"), "seccomp=tuning/seccomp.json"),
        ("Dockerfile", read("Dockerfile"), "/image/usr/local/bin/nats-server"),
        ("Dockerfile", read("Dockerfile"), "distroless/cc-debian12:nonroot"),
        ("tuning/helm-values.yaml", read("tuning/helm-values.yaml"), "runAsUser: 65532"),
        ("the unit", unit.clone(), "Type=notify\n"),
        ("the unit", unit, "ExecStart=/usr/bin/shardcast -c /etc/shardcast/shardcast.conf"),
    ] {
        assert!(text.contains(wanted), "{file} has no {wanted}");
    }
    assert!(root.join("tuning/seccomp.json").exists());
}

#[test]
fn packages_say_what_they_are_and_have_no_data_of_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (package, manifest) in [("shardcast", "Cargo.toml"), ("shardcast-perf", "perf/Cargo.toml")]
    {
        let text = fs::read_to_string(root.join(manifest)).unwrap();
        for field in ["description", "license", "repository", "readme", "rust-version", "include"] {
            assert!(text.contains(&format!("\n{field} = ")), "{package} has no {field}");
        }
        let include = text.lines().find(|line| line.starts_with("include = ")).unwrap();
        let listed: Vec<&str> = include.split('"').skip(1).step_by(2).collect();
        for path in &listed {
            let directory = root.join(manifest).parent().unwrap().join(&path[1..]);
            assert!(directory.exists(), "{package}: {path}");
        }
        assert!(!listed.iter().any(|path| path.contains("test") || path.contains("results")));
    }
}

#[test]
fn the_file_of_a_fresh_installation_is_taken() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tuning/deb/shardcast.conf");
    let output = Command::new(env!("CARGO_BIN_EXE_shardcast")).args(["-t", "-c", file]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
