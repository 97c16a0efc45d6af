//! `merge`: the folder it writes, the proof it gives, and that failure leaves nothing.

use std::fs;

use model::{Checkpoint, StoredDType};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::support::{names, succeed, text, tiny_adapter, tiny_model, tiny_model_stored};
use crate::{failure, luthier};

const MERGE: [&str; 7] = ["merge", "--model", "model", "--adapter", "adapter", "--output", "merged"];

fn folder(size: f32) -> TempDir {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    tiny_adapter(folder.path(), size);
    folder
}

#[test]
fn the_merged_model_says_what_base_and_adapter_say() {
    let folder = folder(0.5);
    let (told, errors) = succeed(folder.path(), &MERGE);
    assert!(
        told.starts_with("merged\nweights  stored as f32\nadapter  changes the logits of a text by "),
        "{told}"
    );
    assert_eq!(errors, "");
    let expected = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names(&folder.path().join("merged")), expected);
    let say = |model: &str, adapter: &[&str]| {
        let generate =
            ["generate", "--model", model, "--prompt", "hello", "--max-tokens", "40", "--precision", "f32"];
        succeed(folder.path(), &[&generate[..], adapter].concat()).0
    };
    let apart = say("model", &["--adapter", "adapter"]);
    assert_eq!(say("merged", &[]), apart);
    assert_ne!(say("model", &[]), apart);
}

#[test]
fn weights_are_stored_as_the_base_has_them_or_as_asked() {
    let folder = tempdir().unwrap();
    tiny_model_stored(folder.path(), StoredDType::Bf16);
    tiny_adapter(folder.path(), 0.5);
    for (name, dtype) in
        [(None, StoredDType::Bf16), (Some("f16"), StoredDType::F16), (Some("f32"), StoredDType::F32)]
    {
        let flag: Vec<&str> = name.map_or(vec![], |name| vec!["--dtype", name]);
        let (told, _) = succeed(folder.path(), &[&MERGE[..], &["--json"], &flag].concat());
        let told: Value = serde_json::from_str(&told).unwrap();
        let number = |key: &str| told[key].as_f64().unwrap();
        assert!(number("relative_difference") <= number("bound"));
        assert!(number("adapter_relative_difference") > 0.1 && number("largest_difference") < 1.0);
        let merged = folder.path().join("merged");
        assert_eq!(Checkpoint::open(&merged).unwrap().main_dtype(), Some(dtype));
        fs::remove_dir_all(merged).unwrap();
    }
}

#[test]
fn rounding_that_hides_the_adapter_is_warned_of() {
    let folder = folder(0.02);
    let (_, errors) = succeed(folder.path(), &[&MERGE[..], &["--dtype", "bf16"]].concat());
    assert!(errors.starts_with("warning: rounding the weights to bf16 changes the logits by"), "{errors}");
    fs::remove_dir_all(folder.path().join("merged")).unwrap();
    let (_, errors) = succeed(folder.path(), &[&MERGE[..], &["--dtype", "f32"]].concat());
    assert_eq!(errors, "");
}

#[test]
fn weights_that_do_not_fit_the_type_leave_nothing() {
    let folder = folder(500.0);
    let told = failure(folder.path(), &[&MERGE[..], &["--dtype", "f16"]].concat());
    assert!(
        told.starts_with(
            "exit code 2\nerror: the weights of the merged model do not fit into f16: tensor \
             `model.layers.0.self_attn.q_proj.weight` has the value -inf at [0, 0]"
        ),
        "{told}"
    );
    assert_eq!(names(folder.path()), ["adapter", "model"]);
}

#[test]
fn a_place_that_is_taken_and_an_adapter_of_another_model_are_refused() {
    let folder = folder(0.5);
    fs::create_dir(folder.path().join("merged")).unwrap();
    fs::write(folder.path().join("merged/notes"), "mine").unwrap();
    insta::assert_snapshot!(failure(folder.path(), &MERGE));
    assert_eq!(names(&folder.path().join("merged")), ["notes"]);
    fs::remove_file(folder.path().join("merged/notes")).unwrap();
    let path = folder.path().join("adapter/adapter_config.json");
    let settings = fs::read_to_string(&path).unwrap();
    fs::write(&path, settings.replace("\"r\": 2", "\"r\": 3")).unwrap();
    let told = failure(folder.path(), &MERGE);
    assert!(told.starts_with("exit code 2\n") && told.contains("has shape [2, "), "{told}");
    fs::write(&path, settings).unwrap();
    succeed(folder.path(), &MERGE); // an empty folder is as good as none
}

#[cfg(unix)]
#[test]
fn a_disk_that_takes_no_more_leaves_nothing() {
    let folder = folder(0.5);
    // Files may not grow beyond 4096 bytes (of 512 times 8), as if the disk were full.
    let script = "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\"";
    let binary = luthier(folder.path()).get_program().to_owned();
    let output = std::process::Command::new("sh")
        .current_dir(folder.path())
        .args(["-c", script, text(binary.as_ref())])
        .args(MERGE)
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && told.contains("cannot write"), "{told}");
    assert_eq!(names(folder.path()), ["adapter", "model"]);
}
