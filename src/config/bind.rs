//! Keys of the configuration file to options.

#![forbid(unsafe_code)]

use super::{Options, StartError};

pub(super) fn bind(_map: &super::file::Map, _options: &mut Options) -> Result<(), StartError> {
    Ok(())
}

pub(super) fn check(_options: &Options) -> Result<(), StartError> {
    Ok(())
}
