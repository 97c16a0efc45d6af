//! A model's folder, opened once for all that is done with it.

use std::fs;
use std::path::Path;

use compute::quant::Format;
use compute::{Device, Precision};
use model::adapter::merge::Difference;
use model::quantize::quantize_folder;
use model::{Adapter, Decoder, Layout, ModelFolder, StoredDType};
use tempfile::tempdir;

use crate::common::{fixture, load, opened};

#[cfg(unix)]
#[test]
fn an_open_folder_is_loaded_quantized_and_merged_although_its_files_are_gone() {
    let case = "llama-sharded";
    let folder = tempdir().unwrap();
    for file in fs::read_dir(fixture(case)).unwrap().flatten().filter(|file| file.path().is_file()) {
        fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let files = ModelFolder::open(folder.path()).unwrap();
    fs::remove_dir_all(folder.path()).unwrap();
    let device = Device::cpu(2);
    let decoder = Decoder::load_for(&files, None, &device, Precision::F32, None).unwrap();
    assert_eq!(decoder.probe(None).to_vec(), load(case).probe(None).to_vec());
    let [four_bits, merged] = [(); 2].map(|()| tempdir().unwrap());
    assert!(
        !quantize_folder(&files, four_bits.path(), &device, Format::QLORA, None, &mut |_| {})
            .unwrap()
            .is_empty()
    );
    let nothing = Adapter::zeros(Layout::default(), 0.0, &device);
    decoder.write_model_files(&nothing, &files, folder.path(), merged.path(), StoredDType::F32).unwrap();
    let merged = Decoder::load(merged.path(), &device, Precision::F32, None).unwrap();
    let difference = Difference::between(&decoder.probe(None), &merged.probe(None));
    assert!(difference.relative < 1e-6, "{difference:?}");
}

#[test]
fn a_wrapper_that_does_not_say_so_is_tied_where_the_weights_have_no_head() {
    for (case, tied) in [("gemma3-wrapped", true), ("mistral3-wrapped", false)] {
        let ModelFolder { config, .. } = opened(case);
        assert!(!config.raw.contains_key("tie_word_embeddings"), "{case}");
        assert_eq!(config.tie_word_embeddings, tied, "{case}");
    }
}

#[test]
fn a_folder_of_a_configuration_alone_is_opened_and_has_no_weights_to_load() {
    let folder = tempdir().unwrap();
    fs::copy(fixture("llama2").join("config.json"), folder.path().join("config.json")).unwrap();
    let files = ModelFolder::open(folder.path()).unwrap();
    assert_eq!(files.stored().unwrap(), None);
    let told = files.require_weights().unwrap_err().to_string();
    assert!(told.ends_with("has neither model.safetensors nor model.safetensors.index.json"), "{told}");
    let loaded = Decoder::load(folder.path(), &Device::cpu(1), Precision::F32, None);
    assert_eq!(loaded.unwrap_err().to_string(), told);
}

#[test]
fn weights_that_are_there_but_cannot_be_read_are_not_a_configuration_alone() {
    let refused = |place: &dyn Fn(&Path)| {
        let folder = tempdir().unwrap();
        fs::copy(fixture("llama2").join("config.json"), folder.path().join("config.json")).unwrap();
        place(folder.path());
        ModelFolder::open(folder.path()).unwrap_err().to_string()
    };
    let shard = "model-00001-of-00002.safetensors";
    let told = refused(&|folder| fs::write(folder.join(shard), "").unwrap());
    assert!(told.contains(&format!("has {shard} but no model.safetensors.index.json")), "{told}");
    let told = refused(&|folder| fs::create_dir(folder.join("model.safetensors")).unwrap());
    assert!(told.contains("model.safetensors"), "{told}");
    #[cfg(unix)]
    {
        let link = |folder: &Path| std::os::unix::fs::symlink("gone", folder.join("model.safetensors"));
        let told = refused(&|folder| link(folder).unwrap());
        assert!(told.contains("model.safetensors") && told.contains("No such file"), "{told}");
    }
}
