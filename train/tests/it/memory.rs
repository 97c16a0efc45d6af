//! The plan is the allocation.

use std::sync::atomic::AtomicBool;

use compute::Precision;
use data::Dataset;
use model::{Checkpointing, FrozenExtent, Keeping};
use train::{Demand, Job, Planned, Saving, Settings, StepPlan, Trainer};

use crate::common::{lora, random_examples, settings, tiny};

#[test]
fn what_is_planned_is_what_is_allocated_under_all_settings() {
    let train = Dataset::of_examples(random_examples(24));
    let decoder = tiny(1, Precision::Bf16);
    let stop = AtomicBool::new(false);
    let block = Checkpointing::Block(Keeping { memory: Some(4096), ..Keeping::default() });
    for micro_batch_tokens in [1, 40, 200, 1 << 30] {
        for (batch_size, packing, held_out) in
            [(1, true, 0), (1, false, 20), (4, true, 3), (5, false, 0), (1 << 20, true, 5)]
        {
            for (checkpointing, frozen_activations) in
                [(Checkpointing::None, None), (block, None), (Checkpointing::None, Some(4096))]
            {
                let mut settings = Settings {
                    micro_batch_tokens,
                    batch_size,
                    checkpointing,
                    frozen_activations,
                    epochs: 2,
                    ..settings()
                };
                settings.order.packing = packing;
                let (eval, out) = (random_examples(held_out), tempfile::tempdir().unwrap());
                let (adapter, peft) = lora(&decoder, 0.1);
                let layout = adapter.layout.clone();
                let job = Job {
                    decoder: &decoder,
                    adapter,
                    saving: Saving::Adapter(&peft),
                    train: &train,
                    eval: &eval,
                    settings: settings.clone(),
                    folder: out.path(),
                    stop: &stop,
                    forgetting: None,
                    pause: None,
                };
                let trainer = Trainer::open(job).unwrap();

                let plan = StepPlan::new(&train, settings.order, batch_size, 2, None);
                let demand = plan.demand(&eval, &[]);
                let extent = demand.extent(micro_batch_tokens, checkpointing, Precision::Bf16);
                let repeated = plan.repeated(&eval);
                let frozen = frozen_activations.map(|memory| FrozenExtent { lengths: &repeated, memory });
                let run = Planned { layout: &layout, dropout: 0.1, optimizer: settings.optimizer };
                let planned = train::memory_plan(&decoder.config, &[run], extent, frozen);
                assert_eq!(*trainer.memory(), planned, "{settings:?}, {held_out} held out");
            }
        }
    }
}

#[test]
fn no_more_is_asked_for_than_a_step_or_an_evaluation_can_use() {
    let train = Dataset::of_examples(random_examples(24));
    let lengths: Vec<usize> = train.examples.iter().map(data::Example::len).collect();
    let (all, longest) = (lengths.iter().sum::<usize>(), *lengths.iter().max().unwrap());
    let eval = random_examples(8);
    let held_out: usize = eval.iter().map(data::Example::len).sum();
    let demand = |batch_size, packing, eval: &[data::Example]| {
        let order = data::OrderSpec { packing, max_length: 40, ..settings().order };
        StepPlan::new(&train, order, batch_size, 1, None).demand(eval, &[])
    };
    assert_eq!(demand(1, true, &[]), Demand { longest, step: 40, total: 40, compared: 0 });
    assert_eq!(demand(2, false, &[]), Demand { longest, step: 2 * longest, total: 2 * longest, compared: 0 });
    assert_eq!(demand(1, true, &eval), Demand { longest, step: 40, total: held_out, compared: 0 });
    assert_eq!(demand(1 << 40, true, &eval), Demand { longest, step: all, total: all, compared: 0 });
    let tokens = |most| demand(1, true, &eval).extent(most, Checkpointing::None, Precision::F32).tokens;
    assert_eq!([1, 70, 1 << 30].map(tokens), [longest, 70, held_out]);
}
