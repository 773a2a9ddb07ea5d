//! `dlock init`.

use tokio::runtime::Builder;

use crate::args;
use crate::exit::{Failure, say};
use crate::store::Store;

/// Has the store made ready, and says what that took.
pub(crate) fn init(args: &args::Init) -> Result<(), Failure> {
    let store = Store::choose(&args.store)?;
    let locks = store.manager()?;
    store.make_folder()?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::system("cannot start threads", &error))?;
    let prepared = runtime.block_on(async {
        let sentences = locks.init().await?;
        if let Err(error) = locks.close().await {
            say(error);
        }
        Ok::<_, Failure>(sentences)
    });
    runtime.shutdown_background();
    let sentences = prepared.map_err(|failure| failure.hint(&format!("the store is {}", store.shown())))?;
    for sentence in sentences {
        say(sentence);
    }
    say(format_args!("{} is ready ({})", store.shown(), locks.guarantees().backend));
    Ok(())
}
