//! Adapters of other ranks, and adapters out of two models: what singular values promise.

use std::path::Path;

use compute::{Device, Matrix};
use model::adapter::extract::{Extraction, extract};
use model::adapter::merge::Difference;
use model::adapter::peft::folder::AdapterFiles;
use model::adapter::peft::resize::{Ranks, Resized, resize};
use model::adapter::peft::{PeftConfig, Selection, targets};
use model::{Adapter, Decoder, ModelFolder, Result, StoredDType};

use crate::common::{fixture, load, opened};

fn adapter(folder: &Path, base: &Decoder) -> Adapter {
    Adapter::load(folder, &base.config, None, &Device::cpu(2)).unwrap().0
}

fn resized(folder: &Path, ranks: Ranks, to: &Path) -> Result<Vec<Resized>> {
    resize(&AdapterFiles::open(folder).unwrap(), ranks, to, &mut |_| {})
}

fn relative(expected: &Matrix, got: &Matrix) -> f64 {
    Difference::between(expected, got).relative
}

#[test]
fn a_rank_that_is_enough_changes_nothing_whatever_the_scales() {
    for (case, name) in [
        ("llama2", "adapter-patterns"), // rsLoRA, patterns, a head trained whole
        ("llama2", "adapter-regex"),
        ("llama2", "adapter-lm_head"),
        ("llama2", "adapter-dora"),
        ("gpt2", "adapter"),
        ("qwen3", "adapter"),
    ] {
        let (base, folder) = (load(case), fixture(case).join(name));
        let before = base.probe(Some(&adapter(&folder, &base)));
        for ranks in [Ranks::All(6), Ranks::All(9), Ranks::Keeping(1.0)] {
            let to = tempfile::tempdir().unwrap();
            let told = resized(&folder, ranks, to.path()).unwrap();
            assert!(
                told.iter().all(|update| update.lost <= 1e-9 * update.squares),
                "{case} {name}: {told:?}"
            );
            let after = base.probe(Some(&adapter(to.path(), &base)));
            let off = relative(&before, &after);
            assert!(off < 2e-5, "{case} {name} {ranks:?}: {off}");
        }
    }
}

#[test]
fn fewer_directions_lose_what_is_told_and_the_part_that_is_asked_for_is_kept() {
    let (base, folder) = (load("llama2"), fixture("llama2").join("adapter-dora"));
    let updates = |folder: &Path| {
        let files = AdapterFiles::open(folder).unwrap();
        model::adapter::peft::updates(&files.config, &files.tensors).unwrap()
    };
    let one = tempfile::tempdir().unwrap();
    let told = resized(&folder, Ranks::All(1), one.path()).unwrap();
    assert!(told.iter().all(|u| u.to == 1 && 0.0 < u.lost && u.lost < u.squares), "{told:?}");
    assert!(updates(one.path()).iter().all(|update| update.rank == 1));
    let most = tempfile::tempdir().unwrap();
    let told = resized(&folder, Ranks::Keeping(0.7), most.path()).unwrap();
    assert!(told.iter().all(|u| u.lost <= 0.3 * u.squares), "{told:?}");
    let ranks: Vec<usize> = told.iter().map(|u| u.to).collect();
    assert!(ranks.iter().any(|rank| *rank != ranks[0]), "all ranks are {}", ranks[0]);
    assert_eq!(updates(most.path()).iter().map(|u| u.rank).collect::<Vec<_>>(), ranks);
    adapter(most.path(), &base); // its settings and tensors agree
    // One rank fewer would not have been enough.
    let fewer = told.iter().max_by_key(|u| u.to).unwrap();
    let less = tempfile::tempdir().unwrap();
    let told = resized(&folder, Ranks::All(fewer.to - 1), less.path()).unwrap();
    let same = told.iter().find(|u| u.module == fewer.module).unwrap();
    assert!(same.lost > 0.3 * same.squares);
}

#[test]
fn updates_of_experts_are_not_resized() {
    let folder = fixture("qwen3-moe").join("adapter-experts");
    let to = tempfile::tempdir().unwrap();
    let error = resized(&folder, Ranks::All(1), to.path()).unwrap_err().to_string();
    assert!(error.contains("`target_parameters` names updates of experts"), "{error}");
}

fn settings(rank: usize, targets: &str, saved: &[&str]) -> PeftConfig {
    PeftConfig {
        r: rank,
        lora_alpha: rank as f64,
        target_modules: Some(match targets {
            targets::ALL_LINEAR => Selection::Expression(targets.to_owned()),
            names => Selection::List(names.split(',').map(str::to_owned).collect()),
        }),
        modules_to_save: saved.iter().map(|name| (*name).to_owned()).collect(),
        ..PeftConfig::default()
    }
}

/// A base with an adapter merged into it, in `f32`.
fn merged(case: &str, name: &str, to: &Path) -> ModelFolder {
    let base = load(case);
    let adapter = adapter(&fixture(case).join(name), &base);
    base.write_model_files(&adapter, &opened(case), &fixture(case), to, StoredDType::F32).unwrap();
    ModelFolder::open(to).unwrap()
}

fn extracted(case: &str, tuned: &ModelFolder, config: &PeftConfig) -> Result<Extraction> {
    extract(&opened(case), tuned, config, &Device::cpu(2), &mut |_| {})
}

#[test]
fn a_merged_adapter_comes_out_again() {
    for (case, name, saved) in [
        ("llama2", "adapter-patterns", &["lm_head"][..]),
        ("gpt2", "adapter", &[]),
        ("qwen2", "adapter", &[]), // tied
        ("llama3", "adapter", &[]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let tuned = merged(case, name, folder.path());
        let found = extracted(case, &tuned, &settings(6, targets::ALL_LINEAR, saved)).unwrap();
        assert_eq!(found.left_out, [], "{case}");
        for layer in &found.layers {
            assert!(layer.squares > 0.0 && layer.lost < 1e-6 * layer.squares, "{case}: {layer:?}");
        }
        let base = load(case);
        let expected =
            Decoder::load(folder.path(), &Device::cpu(2), base.precision, None).unwrap().probe(None);
        let off = relative(&expected, &base.probe(Some(&found.adapter)));
        assert!(off < 2e-5, "{case}: {off}");
        // And as PEFT's folder.
        let to = tempfile::tempdir().unwrap();
        found.adapter.save(to.path(), &found.config).unwrap();
        let off = relative(&expected, &base.probe(Some(&adapter(to.path(), &base))));
        assert!(off < 2e-5, "{case}: {off}");
    }
}

#[test]
fn what_is_lost_and_what_is_left_out_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let tuned = merged("llama2", "adapter-patterns", folder.path());
    let found = extracted("llama2", &tuned, &settings(1, "q_proj,v_proj,down_proj", &[])).unwrap();
    assert!(found.layers.iter().filter(|l| l.module.ends_with("down_proj")).all(|l| l.lost > 0.0));
    let head = found.left_out.iter().find(|tensor| tensor.name == "lm_head.weight").unwrap();
    assert_eq!(head.savable.as_deref(), Some("lm_head"));
    assert!(head.relative > 0.0);
    assert!(found.left_out.iter().any(|tensor| tensor.name == "model.layers.0.self_attn.o_proj.weight"));
    assert!(
        !found.left_out.iter().any(|tensor| tensor.name.ends_with("norm.weight")),
        "{:?}",
        found.left_out
    );
}

#[test]
fn models_of_other_shapes_and_families_and_ranks_beyond_a_layer_are_refused() {
    let wrong = |case: &str, tuned: &str, config: &PeftConfig| {
        extracted(case, &opened(tuned), config).unwrap_err().to_string()
    };
    let all = settings(2, targets::ALL_LINEAR, &[]);
    let family = wrong("llama2", "qwen2", &all);
    assert!(family.contains("`model_type` is \"qwen2\", and that of the base \"llama\""), "{family}");
    let shape = wrong("llama2", "llama-gelu", &all);
    assert!(shape.contains("both must be of one shape"), "{shape}");
    let bits = wrong("llama2", "nf4", &all);
    assert!(bits.contains("name the model's 16-bit checkpoint"), "{bits}");
    let rank = wrong("llama2", "llama2", &settings(1000, targets::ALL_LINEAR, &[]));
    assert!(rank.contains("has 40 directions at most"), "{rank}");
}
