//! `torch.sum` of `f32` values on a CPU, to the bit: the mean of scales that bitsandbytes stores depends on
//! its order.
//!
//! Vectors of eight lanes, four of them side by side, are added in a cascade of four levels that bounds the
//! error; what is left over comes last (`aten/src/ATen/native/cpu/SumKernel.cpp`). Beyond 32768 values
//! torch's order also depends on its threads, and the sum here is that of one.

const LANES: usize = 8;
const LEVELS: usize = 4;
/// Vectors that are summed side by side.
const WIDTH: usize = 4;

/// The sum of all values.
pub(super) fn sum(values: &[f32]) -> f32 {
    if values.len() < LANES {
        return of_vectors::<1>(values.as_chunks().0)[0];
    }
    let (vectors, rest) = values.as_chunks::<LANES>();
    rest.iter().chain(&of_vectors(vectors)).fold(0.0, |sum, value| sum + value)
}

/// Lane by lane, the sum of these vectors.
fn of_vectors<const N: usize>(vectors: &[[f32; N]]) -> [f32; N] {
    let (fours, rest) = vectors.as_chunks::<WIDTH>();
    let [mut first, second, third, fourth] = cascade(fours);
    for vector in rest {
        add(&mut first, vector);
    }
    for other in [second, third, fourth] {
        add(&mut first, &other);
    }
    first
}

/// The sums of four columns of vectors: a level's sum goes into the next one after `1 << power` additions.
fn cascade<const N: usize>(fours: &[[[f32; N]; WIDTH]]) -> [[f32; N]; WIDTH] {
    let power = (fours.len().max(1).next_power_of_two().trailing_zeros() as usize / LEVELS).max(4);
    let whole = fours.len() >> power << power;
    let mut levels = [[[0.0; N]; WIDTH]; LEVELS];
    let add_all = |to: &mut [[f32; N]; WIDTH], from: &[[f32; N]; WIDTH]| {
        to.iter_mut().zip(from).for_each(|(to, from)| add(to, from));
    };
    for (i, four) in (1..).zip(&fours[..whole]) {
        add_all(&mut levels[0], four);
        if i % (1 << power) != 0 {
            continue;
        }
        for level in 1..LEVELS {
            let below = std::mem::replace(&mut levels[level - 1], [[0.0; N]; WIDTH]);
            add_all(&mut levels[level], &below);
            if i >> (level * power) & ((1 << power) - 1) != 0 {
                break;
            }
        }
    }
    for four in &fours[whole..] {
        add_all(&mut levels[0], four);
    }
    let [mut sum, others @ ..] = levels;
    others.iter().for_each(|level| add_all(&mut sum, level));
    sum
}

fn add<const N: usize>(to: &mut [f32; N], from: &[f32; N]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}
