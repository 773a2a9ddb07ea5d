//! `dlock init`.

use tokio::runtime::Builder;

use crate::args;
use crate::exit::{Failure, say};
use crate::store::Store;

/// Opens the store, which makes what it needs, and closes it.
pub(crate) fn init(args: &args::Init) -> Result<(), Failure> {
    let store = Store::choose(&args.store)?;
    let locks = store.manager()?;
    store.make_folder()?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::system("cannot start threads", &error))?;
    let opened = runtime.block_on(async {
        locks.open().await?;
        if let Err(error) = locks.close().await {
            say(error);
        }
        Ok::<(), Failure>(())
    });
    runtime.shutdown_background();
    opened.map_err(|failure| failure.hint(&format!("the store is {}", store.shown())))?;
    say(format_args!("{} is ready ({})", store.shown(), locks.guarantees().backend));
    Ok(())
}
