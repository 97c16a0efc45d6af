//! What a pool denies, as an answer over HTTP.

use jobs::pool::Refused;
use jobs::supervisor::Denied;

use crate::error::ApiError;

/// The answer.
pub(super) fn refusal(denied: Denied) -> ApiError {
    let message = denied.to_string();
    match denied {
        Denied::Forbidden(_) => ApiError::forbidden(message),
        Denied::Refused(refused) => match refused {
            Refused::NoJob(_) => ApiError::absent("id", message),
            Refused::Twice(_) | Refused::NotHeld(_) | Refused::InUse { .. } | Refused::Full { .. } => {
                ApiError::conflicting(message)
            }
            Refused::NoProject { .. } => ApiError::field("project", message),
            Refused::Spec { field, .. } => ApiError::field(field, message),
            Refused::Policy(error) => ApiError::field(error.field, message),
            Refused::NeverFits { .. } | Refused::Node { .. } => ApiError::invalid(message),
        },
        Denied::Busy => ApiError::crowded(message),
        Denied::Store(_) => ApiError::storage(message),
        Denied::Ended => ApiError::unavailable(message),
    }
}
