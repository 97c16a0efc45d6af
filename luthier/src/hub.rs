//! Finds models: folders, the Hugging Face cache, the hub.
