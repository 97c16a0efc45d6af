//! Fair shares against `fixtures/make_shares.py`, a definition written apart from the crate's, to the bit.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use jobs::share::{Claim, divide};
use serde::Deserialize;

#[derive(Deserialize)]
struct Tree {
    total: f64,
    usage_weight: f64,
    queues: Vec<Queue>,
}

#[derive(Deserialize)]
struct Queue {
    parent: Option<usize>,
    priority: i32,
    quota: Option<f64>,
    limit: Option<f64>,
    weight: f64,
    request: f64,
    usage: f64,
    share: f64,
}

impl Queue {
    fn claim(&self) -> Claim {
        let Queue { priority, quota, limit, weight, request, usage, .. } = *self;
        Claim { priority, quota, limit, weight, request, usage }
    }
}

fn shares(tree: &Tree) -> Vec<f64> {
    let mut shares = vec![0.0; tree.queues.len()];
    let mut floors = vec![(None, tree.total)];
    while let Some((parent, total)) = floors.pop() {
        let siblings: Vec<usize> =
            (0..tree.queues.len()).filter(|&n| tree.queues[n].parent == parent).collect();
        let claims: Vec<Claim> = siblings.iter().map(|&n| tree.queues[n].claim()).collect();
        for (&n, share) in siblings.iter().zip(divide(total, &claims, tree.usage_weight)) {
            shares[n] = share;
            floors.push((Some(n), share));
        }
    }
    shares
}

fn compare(path: &Path) -> usize {
    let lines = BufReader::new(File::open(path).unwrap()).lines();
    let mut count = 0;
    for (number, line) in lines.enumerate() {
        let tree: Tree = serde_json::from_str(&line.unwrap()).unwrap();
        let expected: Vec<f64> = tree.queues.iter().map(|queue| queue.share).collect();
        assert_eq!(shares(&tree), expected, "line {} of {}", number + 1, path.display());
        count += 1;
    }
    count
}

#[test]
fn shares_are_those_of_the_definition() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/shares.jsonl");
    assert_eq!(compare(&fixture), 309);
    // More of them, made by the script that stands beside the fixture.
    if let Some(path) = std::env::var_os("LUTHIER_SHARES") {
        println!("{} trees are equal", compare(Path::new(&path)));
    }
}

#[test]
fn the_worked_cases_come_to_what_the_rules_say() {
    let claim = |quota: f64, weight: f64, request: f64| Claim {
        priority: 0,
        quota: Some(quota),
        limit: None,
        weight,
        request,
        usage: 0.0,
    };
    // An idle lender, one that uses a part, weights of two to one with a unit left over, too much promised.
    assert_eq!(divide(8.0, &[claim(4.0, 1.0, 8.0), claim(4.0, 1.0, 0.0)], 1.0), [8.0, 0.0]);
    assert_eq!(divide(8.0, &[claim(4.0, 1.0, 8.0), claim(4.0, 1.0, 1.0)], 1.0), [7.0, 1.0]);
    assert_eq!(divide(8.0, &[claim(0.0, 2.0, 8.0), claim(0.0, 1.0, 8.0)], 1.0), [5.0, 3.0]);
    assert_eq!(divide(8.0, &[claim(8.0, 1.0, 8.0), claim(8.0, 1.0, 8.0)], 1.0), [8.0, 8.0]);
}
