//! Who may do what: members of a project submit, its owners decide about all of its jobs, admins about
//! everything.

use crate::job::{Job, Spec};
use crate::policy::Policy;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// Its name.
    pub name: String,
    /// Whether it is who started the pool: an admin whatever the policy says, or nobody could mend a policy
    /// that names none.
    pub is_root: bool,
}

/// What somebody wants to do with a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// End it.
    Cancel,
    /// Keep it from running.
    Hold,
    /// Let it run again.
    Release,
    /// Put it before or behind others of its project.
    Prioritize(i32),
}

impl Deed {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Deed::Cancel => "cancel",
            Deed::Hold => "hold",
            Deed::Release => "release",
            Deed::Prioritize(_) => "prioritize",
        }
    }
}

impl Who {
    /// Whether it may change the policy and do whatever an owner may.
    #[must_use]
    pub fn is_admin(&self, policy: &Policy) -> bool {
        self.is_root || policy.admins.contains(&self.name)
    }

    /// Whether it owns a project.
    #[must_use]
    pub fn owns(&self, project: &str, policy: &Policy) -> bool {
        self.is_admin(policy) || policy.project(project).is_some_and(|p| p.owners.contains(&self.name))
    }

    /// Whether it sees a project's jobs and may submit some.
    #[must_use]
    pub fn belongs_to(&self, project: &str, policy: &Policy) -> bool {
        self.owns(project, policy) || policy.project(project).is_some_and(|p| p.members.contains(&self.name))
    }

    /// Whether it may submit a job. A job runs under the name of who submits it.
    pub(crate) fn may_submit(&self, spec: &Spec, policy: &Policy) -> Result<(), String> {
        // Who does not belong to it learns nothing of it, not even whether it exists.
        if !self.belongs_to(&spec.project, policy) {
            return Err(format!("{} is not a member of project `{}`", self.name, spec.project));
        }
        let above = spec.priority > spec.class.priority();
        if above && !self.owns(&spec.project, policy) {
            return Err(format!(
                "only owners of `{}` give a job more priority than its class has ({})",
                spec.project,
                spec.class.priority()
            ));
        }
        Ok(())
    }

    /// Whether it may do something with a job: owners with all, members with their own, but priorities are
    /// the owners'.
    pub(crate) fn may(&self, deed: Deed, job: &Job, policy: &Policy) -> Result<(), String> {
        let project = &job.spec.project;
        let lowers = matches!(deed, Deed::Prioritize(priority) if priority <= job.spec.priority);
        let is_own = job.spec.user == self.name && self.belongs_to(project, policy);
        let may = self.owns(project, policy) || (is_own && (!matches!(deed, Deed::Prioritize(_)) || lowers));
        match may {
            true => Ok(()),
            false => Err(format!("only an owner of `{project}` may {} this job", deed.word())),
        }
    }
}
