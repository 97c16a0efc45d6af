use train::{Decay, Schedule};

/// Values of transformers' `get_scheduler` for ten steps, the first three of them warm-up (0.25 of ten, rounded up).
#[test]
fn factors_are_those_of_transformers() {
    let third = 1.0 / 3.0;
    let linear =
        [0.0, third, 2.0 * third, 1.0, 6.0 / 7.0, 5.0 / 7.0, 4.0 / 7.0, 3.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0];
    let schedule = |decay| Schedule { decay, warmup: 0.25 };
    for (i, expected) in linear.into_iter().enumerate() {
        let got = schedule(Decay::Linear).factor(i as u64 + 1, 10);
        assert!((got - expected).abs() < 1e-12, "step {}: {got}, not {expected}", i + 1);
    }
    let cosine = schedule(Decay::Cosine);
    assert!((cosine.factor(4, 10) - 1.0).abs() < 1e-12);
    assert!((cosine.factor(10, 10) - 0.5 * (1.0 + (std::f64::consts::PI * 6.0 / 7.0).cos())).abs() < 1e-12);
    assert_eq!(schedule(Decay::Constant).factor(9, 10), 1.0);
}

#[test]
fn warm_up_may_be_a_number_of_steps_or_nothing() {
    let schedule = |warmup| Schedule { decay: Decay::Linear, warmup };
    assert_eq!(schedule(5.0).warmup_steps(10), 5);
    assert_eq!(schedule(0.0).factor(1, 10), 1.0);
    assert_eq!(schedule(0.03).warmup_steps(100), 3);
    assert_eq!(schedule(0.03).warmup_steps(101), 4);
}
