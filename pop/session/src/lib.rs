//! Sans-IO control state.
