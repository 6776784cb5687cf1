"""The `metaser` command."""

from __future__ import annotations

from launch.exits import App, exit_with_code
from launch.train import train
from launch.verbs.ablate import ablate
from launch.verbs.baseline import baseline
from launch.verbs.compare import compare
from launch.verbs.crossval import crossval
from launch.verbs.demo import demo
from launch.verbs.evaluate import evaluate
from launch.verbs.inspect import inspect
from launch.verbs.pack import pack
from launch.verbs.predict import predict
from launch.verbs.status import status
from launch.verbs.stop import stop
from launch.verbs.submit import submit
from launch.verbs.tune import tune

app = App(
    name="metaser",
    help="Speech emotion recognition that learns from all the metadata a corpus carries.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (
    demo,
    pack,
    inspect,
    train,
    tune,
    evaluate,
    crossval,
    ablate,
    baseline,
    compare,
    predict,
    submit,
    status,
    stop,
):
    app.command()(verb)


def main() -> None:
    """Entry point of the `metaser` command."""
    exit_with_code(app)


if __name__ == "__main__":
    main()
