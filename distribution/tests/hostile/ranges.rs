//! Large blobs in ranges. Nothing here depends on how many connections are used at once, or when.

use std::collections::BTreeSet;

use crated_distribution::Quota;

use super::*;

const RANGE: usize = 16 * 1024;

/// Small ranges, and no link ever fast enough for a single connection.
fn in_ranges() -> RegistryOptions {
    let mut options = options();
    options.limits.range_bytes = RANGE as u64;
    options.limits.parts_max = 4;
    options.limits.parts_below_rate = u64::MAX;
    options
}

fn asked(server: &Hostile) -> Vec<String> {
    server.requests().iter().map(|seen| seen.header("range").to_owned()).collect()
}

fn range(start: usize, end: usize) -> String {
    format!("bytes={start}-{}", end - 1)
}

#[tokio::test]
async fn a_large_blob_is_fetched_in_ranges_that_cover_it_once() {
    let bytes = noise(40, 10 * RANGE + 5);
    let content = bytes.clone();
    let server = Hostile::start(move |seen| honest(&content, seen)).await;
    assert_eq!(fetch_with(in_ranges(), &server, &layer(&bytes)).await.unwrap(), bytes);
    let ranges = asked(&server);
    assert_eq!(ranges[0], range(0, RANGE), "the first range is the question");
    let mut expected: BTreeSet<String> =
        (0..10).map(|at| range(at * RANGE, (at + 1) * RANGE)).collect();
    // The last one is whatever is left.
    expected.insert(format!("bytes={}-", 10 * RANGE));
    assert_eq!(ranges.len(), expected.len());
    assert_eq!(ranges.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[tokio::test]
async fn a_fetch_from_the_middle_is_split_from_there() {
    let bytes = noise(41, 6 * RANGE);
    let content = bytes.clone();
    let server = Hostile::start(move |seen| honest(&content, seen)).await;
    let fetcher = resolver(in_ranges()).fetcher(&server.reference()).await.unwrap();
    let body = fetcher.fetch(&layer(&bytes), 100).await.unwrap();
    assert_eq!(body.collect(1 << 30).await.unwrap(), bytes.slice(100..));
    let starts: BTreeSet<usize> = server.requests().iter().map(Seen::offset).collect();
    assert_eq!(starts, (0..6).map(|at| 100 + at * RANGE).collect());
}

#[tokio::test]
async fn a_fast_link_is_left_to_one_connection() {
    let bytes = noise(42, 6 * RANGE);
    let content = bytes.clone();
    let server = Hostile::start(move |seen| honest(&content, seen)).await;
    let mut options = in_ranges();
    options.limits.parts_below_rate = 1;
    assert_eq!(fetch_with(options, &server, &layer(&bytes)).await.unwrap(), bytes);
    assert_eq!(asked(&server), [range(0, RANGE), format!("bytes={RANGE}-")]);
}

#[tokio::test]
async fn small_blobs_and_limits_of_one_part_are_not_split() {
    let bytes = noise(43, 2 * RANGE);
    let content = bytes.clone();
    let server = Hostile::start(move |seen| honest(&content, seen)).await;
    let small = layer(&bytes.slice(..2 * RANGE - 1));
    let content = bytes.slice(..2 * RANGE - 1);
    let other = Hostile::start(move |seen| honest(&content, seen)).await;
    fetch_with(in_ranges(), &other, &small).await.unwrap();
    assert_eq!(asked(&other), [""]);
    let mut options = in_ranges();
    options.limits.parts_max = 1;
    fetch_with(options, &server, &layer(&bytes)).await.unwrap();
    assert_eq!(asked(&server), [""]);
}

#[tokio::test]
async fn a_server_without_ranges_is_asked_once_and_then_left_alone() {
    // One that does not know them, and one that refuses them.
    for refusal in [200, 416, 400] {
        let bytes = noise(44, 5 * RANGE);
        let content = bytes.clone();
        let server = Hostile::start(move |seen| match seen.header("range") {
            "" => Reply::ok(&content),
            _ if refusal == 200 => Reply::ok(&content),
            _ => Reply::status(refusal),
        })
        .await;
        let fetcher = resolver(in_ranges()).fetcher(&server.reference()).await.unwrap();
        for _ in 0..2 {
            let body = fetcher.fetch(&layer(&bytes), 0).await.unwrap();
            assert_eq!(body.collect(1 << 30).await.unwrap(), bytes);
        }
        let probes = asked(&server).iter().filter(|range| !range.is_empty()).count();
        assert_eq!(probes, 1, "{refusal}");
        // And a resume still works, by skipping what was there before.
        let body = fetcher.fetch(&layer(&bytes), 77).await.unwrap();
        assert_eq!(body.collect(1 << 30).await.unwrap(), bytes.slice(77..));
    }
}

#[tokio::test]
async fn case_7_a_part_that_is_another_part_is_refused() {
    for wrong in ["bytes 1-16384/81920", "bytes 0-99999999/81920", "bytes 0-16383/5", ""] {
        let bytes = noise(45, 5 * RANGE);
        let content = bytes.clone();
        let server = Hostile::start(move |seen| match seen.range(content.len()) {
            Some(part) => Reply::new(206, &[("content-range", wrong)], content.slice(part)),
            None => Reply::ok(&content),
        })
        .await;
        let error = fetch_with(in_ranges(), &server, &layer(&bytes)).await.unwrap_err();
        assert!(matches!(error, Error::InvalidDocument { .. }), "{wrong}: {error}");
    }
}

#[tokio::test]
async fn case_8_content_that_changes_between_ranges_is_not_taken() {
    let (bytes, other) = (noise(46, 6 * RANGE), noise(47, 6 * RANGE));
    let (first, rest) = (bytes.clone(), other.clone());
    let server = Hostile::start(move |seen| {
        honest(if seen.offset() < 3 * RANGE { &first } else { &rest }, seen)
    })
    .await;
    let error = fetch_with(in_ranges(), &server, &layer(&bytes)).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
}

#[tokio::test]
async fn case_9_only_the_part_that_is_stuck_moves_to_another_mirror() {
    let bytes = noise(48, 8 * RANGE);
    let content = bytes.clone();
    // Three parts break at the first mirror: one after some bytes, one before any, one is silent.
    let broken = Hostile::start(move |seen| {
        let whole = content.len();
        let part = seen.range(whole).unwrap_or(0..whole);
        let header = format!("bytes {}-{}/{whole}", part.start, part.end - 1);
        let length = part.len().to_string();
        let head = Reply::head(206, &[("content-range", &header), ("content-length", &length)]);
        match part.start / RANGE {
            2 if part.start % RANGE == 0 => head.then(&content[part.start..part.start + 1000]),
            3 => Reply::status(503),
            5 if part.start % RANGE == 0 => {
                head.then(&content[part.start..part.start + 10]).wait(Duration::from_secs(3600))
            }
            _ => honest(&content, seen),
        }
    })
    .await;
    let content = bytes.clone();
    let healthy = Hostile::start(move |seen| honest(&content, seen)).await;
    let (mut options, _dir) = mirrored(&broken, &healthy);
    options.limits = in_ranges().limits;
    options.timeouts.stall = Duration::from_secs(1);
    let reference = "registry.example/team/app:v1".parse().unwrap();
    let fetcher = resolver(options).fetcher(&reference).await.unwrap();
    let body = fetcher.fetch(&layer(&bytes), 0).await.unwrap();
    assert_eq!(body.collect(1 << 30).await.unwrap(), bytes);
    let moved = asked(&healthy);
    // The one that failed at once, and the one that fell silent, from where it did.
    assert!(moved.contains(&range(3 * RANGE, 4 * RANGE)), "{moved:?}");
    let from = |start: usize| moved.contains(&range(5 * RANGE + start, 6 * RANGE));
    assert!((0..=10).any(from), "{moved:?}");
    // The one that broke went on where it broke, wherever that was.
    let rest = range(2 * RANGE + 1000, 3 * RANGE);
    assert!(moved.contains(&rest) || asked(&broken).contains(&rest), "{moved:?}");
}

#[tokio::test]
async fn a_part_that_no_one_has_ends_the_body_and_not_in_silence() {
    let bytes = noise(49, 8 * RANGE);
    let content = bytes.clone();
    let server = Hostile::start(move |seen| match seen.offset() / RANGE {
        4 => Reply::status(404),
        _ => honest(&content, seen),
    })
    .await;
    let fetcher = resolver(in_ranges()).fetcher(&server.reference()).await.unwrap();
    let mut body = fetcher.fetch(&layer(&bytes), 0).await.unwrap();
    let mut whole = Vec::new();
    let error = loop {
        match body.chunk().await {
            Ok(Some(piece)) => whole.extend_from_slice(&piece),
            Ok(None) => panic!("ended"),
            Err(error) => break error,
        }
    };
    assert!(error.is_not_found(), "{error}");
    assert_eq!(whole, bytes.slice(..4 * RANGE));
}

#[tokio::test]
async fn case_29_a_dropped_body_leaves_no_part_behind() {
    let bytes = noise(50, 40 * RANGE);
    let content = bytes.clone();
    let server = Hostile::start(move |seen| honest(&content, seen)).await;
    let mut options = in_ranges();
    options.limits.open_bodies_max = 2;
    options.limits.host_bodies_max = 2;
    options.limits.ahead_bytes_max = 2 * RANGE as u64;
    let fetcher = resolver(options).fetcher(&server.reference()).await.unwrap();
    for pieces in [1, 2, 5, 9] {
        let mut body = fetcher.fetch(&layer(&bytes), 0).await.unwrap();
        for _ in 0..pieces {
            body.chunk().await.unwrap();
        }
    }
    // Whatever those held would be missing now.
    let body = fetcher.fetch(&layer(&bytes), 0).await.unwrap();
    assert_eq!(body.collect(1 << 30).await.unwrap(), bytes);
}

#[tokio::test]
async fn many_bodies_share_a_small_budget_without_waiting_for_each_other_for_ever() {
    let bytes = noise(51, 12 * RANGE);
    let content = bytes.clone();
    let server = Hostile::start(move |seen| honest(&content, seen)).await;
    let mut options = in_ranges();
    options.limits.open_bodies_max = 6;
    options.limits.host_bodies_max = 3;
    options.limits.ahead_bytes_max = 3 * RANGE as u64;
    options.quota = Some(Quota::new(&options.limits));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..6 {
        // A resolver each, as programs have that make one for every pull.
        let (client, reference) = (resolver(options.clone()), server.reference());
        let bytes = bytes.clone();
        tasks.spawn(async move {
            let fetcher = client.fetcher(&reference).await.unwrap();
            let body = fetcher.fetch(&layer(&bytes), 0).await.unwrap();
            assert!(body.collect(1 << 30).await.unwrap() == bytes);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}
