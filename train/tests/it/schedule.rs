use train::{Decay, Schedule};

/// Values of transformers' `get_scheduler` for ten steps, the first three of them warm-up (0.25 of ten,
/// rounded up).
#[test]
fn factors_are_those_of_transformers() {
    let third = 1.0 / 3.0;
    let linear =
        [0.0, third, 2.0 * third, 1.0, 6.0 / 7.0, 5.0 / 7.0, 4.0 / 7.0, 3.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0];
    let schedule = |decay| Schedule { decay, warmup: Some(0.25) };
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
    let schedule = |warmup| Schedule { decay: Decay::Linear, warmup: Some(warmup) };
    assert_eq!(schedule(5.0).warmup_steps(10), 5);
    assert_eq!(schedule(0.0).factor(1, 10), 1.0);
    assert_eq!(schedule(0.03).warmup_steps(100), 3);
    assert_eq!(schedule(0.03).warmup_steps(101), 4);
}

#[test]
fn warm_up_left_open_is_three_percent_and_none_in_a_run_of_fewer_than_ten_steps() {
    let schedule = Schedule { decay: Decay::Linear, warmup: None };
    for (steps, warmup) in [(1, 0), (9, 0), (10, 1), (33, 1), (34, 2), (1000, 30)] {
        assert_eq!(schedule.warmup_steps(steps), warmup, "{steps} steps");
    }
    assert_eq!((schedule.factor(1, 1), schedule.factor(1, 9), schedule.factor(1, 10)), (1.0, 1.0, 0.0));
    let said = Schedule { warmup: Some(0.03), ..schedule };
    assert_eq!((said.warmup_steps(1), said.factor(1, 1)), (1, 0.0), "what is said stays as it was");
}

#[test]
fn the_peak_is_the_largest_factor_of_the_steps_that_are_done() {
    for decay in [Decay::Linear, Decay::Cosine, Decay::Constant] {
        for warmup in [None, Some(0.0), Some(0.03), Some(0.5), Some(3.0), Some(1000.0)] {
            let schedule = Schedule { decay, warmup };
            for (done, steps) in [(1, 1), (1, 20), (9, 9), (10, 20), (20, 20)] {
                let largest = (1..=done).map(|step| schedule.factor(step, steps)).fold(0.0, f64::max);
                assert_eq!(schedule.peak(done, steps), largest, "{schedule:?}, {done} of {steps}");
            }
        }
    }
}
