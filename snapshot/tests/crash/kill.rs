//! A process killed at any moment leaves a snapshotter that opens, whose
//! committed snapshots are whole, and whose space comes back.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crated_snapshot::testsuite::{LayerBuilder, TestDir, is_root, may_run};
use crated_snapshot::{
    Applier, ApplyOptions, CommitOptions, Error, Key, Kind, Labels, Name, OverlayOptions,
    OverlaySnapshotter, Snapshotter, TarApplier,
};

/// Files per layer; a whole layer has all of them with full content.
const FILES: usize = 40;

/// What the victim says after each commit.
const COMMITTED: &str = "layer is committed";

fn layer() -> Vec<u8> {
    let data = vec![b'x'; 3000];
    (0..FILES).fold(LayerBuilder::new(), |layer, at| layer.file(&format!("f{at}"), &data)).finish()
}

fn open(root: &Path) -> OverlaySnapshotter {
    let options = OverlayOptions { root: root.to_owned(), ..OverlayOptions::default() };
    OverlaySnapshotter::open(options).expect("opens after a crash")
}

/// The victim: builds and removes chains until it is killed. Runs only when
/// this test starts itself again.
#[test]
fn victim() {
    let Ok(root) = std::env::var("CRATED_SNAPSHOT_CRASH_ROOT") else { return };
    let (s, layer) = (open(Path::new(&root)), layer());
    for round in 0.. {
        let (key, name) = (Key::new("work").unwrap(), Name::new(format!("l{round}")).unwrap());
        let mounts = s.prepare(&key, None, &Labels::new()).unwrap();
        let options = ApplyOptions::default();
        TarApplier::default().apply(&mut &layer[..], &mounts, &options).unwrap();
        s.commit(&name, &key, &CommitOptions::default()).unwrap();
        // The harness may have begun the line.
        std::io::stdout().write_all(format!("{COMMITTED}\n").as_bytes()).unwrap();
        if round % 3 == 2 {
            s.remove(&format!("l{}", round - 1)).unwrap();
            s.cleanup().unwrap();
        }
    }
}

#[test]
fn a_killed_process_leaves_whole_snapshots_or_none() {
    if !may_run(is_root(), "needs root") {
        return;
    }
    let temp = TestDir::new();
    let mut whole = 0;
    for round in 0..8_u64 {
        let root = temp.path().join(format!("root{round}"));
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::victim", "--nocapture"])
            .env("CRATED_SNAPSHOT_CRASH_ROOT", &root)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        let commits = lines.filter(|line| line.as_ref().unwrap().ends_with(COMMITTED));
        assert_eq!(commits.take(2 + round as usize).count(), 2 + round as usize);
        // Somewhere in the next round, elsewhere each time.
        std::thread::sleep(Duration::from_micros(700 * round));
        victim.kill().unwrap();
        victim.wait().unwrap();

        let s = open(&root);
        let mut names = Vec::new();
        s.walk(&mut |info| {
            names.push((info.name, info.kind));
            ControlFlow::Continue(())
        })
        .unwrap();
        for (name, kind) in &names {
            match kind {
                Kind::Committed => {
                    assert_whole(&s, name);
                    whole += 1;
                }
                // Interrupted work can be dropped and done again.
                Kind::Active | Kind::View => s.remove(name).unwrap(),
            }
        }
        s.cleanup().unwrap();
        let left = fs::read_dir(root.join("snapshots")).unwrap().count();
        assert_eq!(left, names.iter().filter(|(_, kind)| *kind == Kind::Committed).count());
        let again = s.prepare(&Key::new("work").unwrap(), None, &Labels::new());
        assert!(!matches!(again, Err(Error::AlreadyExists(_))));
    }
    assert!(whole > 0, "no victim lived long enough");
}

fn assert_whole(s: &OverlaySnapshotter, name: &str) {
    let view = Key::new("view").unwrap();
    let mounts = s.view(&view, Some(&Name::new(name).unwrap()), &Labels::new()).unwrap();
    for at in 0..FILES {
        let file = Path::new(&mounts[0].source).join(format!("f{at}"));
        assert_eq!(fs::metadata(&file).unwrap().len(), 3000, "{}", file.display());
    }
    s.remove("view").unwrap();
}
