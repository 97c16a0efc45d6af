//! SkyPilot: a task file, which it runs on clouds, Kubernetes or Slurm.
//!
//! Fields and their meaning: SkyPilot's "YAML spec" and the schema in its repository
//! (`sky/utils/schemas.py`), 2026.

use std::collections::BTreeMap;

use serde::Serialize;

use super::kubernetes::job_name;
use super::{Export, ExportError, File, Site, arguments_in_image, mounted, thousandths};
use crate::job::Spec;
use crate::policy::Policy;
use crate::slurm::shell;

#[derive(Serialize)]
struct Task {
    name: String,
    num_nodes: u32,
    resources: Resources,
    file_mounts: BTreeMap<String, Mount>,
    run: String,
}

#[derive(Serialize)]
struct Resources {
    /// At least so many.
    cpus: String,
    /// GiB, at least so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accelerators: Option<String>,
    job_recovery: Recovery,
}

#[derive(Serialize)]
struct Recovery {
    max_restarts_on_errors: u32,
    recover_on_exit_codes: Vec<i32>,
}

#[derive(Serialize)]
struct Mount {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    mode: &'static str,
}

pub(super) fn export(policy: &Policy, spec: &Spec, site: &Site) -> Result<Export, ExportError> {
    let given = spec.member(0);
    let name = job_name(spec);
    let accelerators = match (given.devices, &site.accelerator) {
        (0, _) => None,
        (_, None) => {
            let message = "SkyPilot wants the accelerators' name, such as H100; say it".to_owned();
            return Err(ExportError::Job { field: "devices", message });
        }
        (amount, Some(kind)) => Some(format!("{kind}:{}", thousandths(amount))),
    };
    let folder = spec.launch.folder.display().to_string();
    let mount = Mount {
        name: site.bucket.is_none().then(|| format!("luthier-{name}")),
        source: site.bucket.clone(),
        mode: "MOUNT",
    };
    let arguments: Vec<String> =
        arguments_in_image(&spec.launch, &given).iter().map(|argument| shell::quote(argument)).collect();
    let task = Task {
        num_nodes: spec.members,
        resources: Resources {
            cpus: format!("{}+", given.cpus),
            memory: (given.memory > 0).then(|| format!("{}+", given.memory.div_ceil(1 << 30))),
            accelerators,
            job_recovery: Recovery {
                max_restarts_on_errors: policy.retries,
                // 75: it saved and wants to go on, which does not count as an error.
                recover_on_exit_codes: vec![75],
            },
        },
        file_mounts: BTreeMap::from([(mounted(spec)?.display().to_string(), mount)]),
        run: format!("cd {}\nexec {}\n", shell::quote(&folder), arguments.join(" ")),
        name,
    };
    let text = serde_saphyr::to_string(&task).map_err(|error| ExportError::Yaml(error.to_string()))?;
    Ok(Export { files: vec![File { name: "task.yaml".into(), text }], gaps: gaps(spec) })
}

fn gaps(spec: &Spec) -> Vec<String> {
    let mut gaps = super::gaps_of_job(spec);
    gaps.extend([
        "SkyPilot knows no quotas, weights or limits: nothing of the policy but the number of retries is \
         told"
            .to_owned(),
        "start it as a managed job (sky jobs launch), or nobody starts it again after it was stopped".into(),
        "`luthier` and what the run reads have to be on its machines: add a `setup` section, or an image"
            .into(),
        "a spot machine may go without a warning in time: the run goes on from its last checkpoint".into(),
    ]);
    if spec.members > 1 {
        gaps.push("each member gets a machine of its own".into());
    }
    gaps
}
