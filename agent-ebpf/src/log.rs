//! `decision!`: one line for each decision of a program, in debug builds. Release builds have no trace of it.

/// Logs at debug level through aya-log when the feature `log` is on.
#[cfg(feature = "log")]
macro_rules! decision {
    ($ctx:expr, $($arg:tt)*) => { aya_log_ebpf::debug!($ctx, $($arg)*) };
}

/// Nothing.
#[cfg(not(feature = "log"))]
macro_rules! decision {
    ($ctx:expr, $($arg:tt)*) => {{
        let _ = $ctx;
    }};
}

pub(crate) use decision;
