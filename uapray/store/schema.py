"""The tables of results: each column's type, unit and meaning (`docs/results.md` says the same)."""

import pyarrow as pa

SCHEMA_VERSION = "1"

_TEXT = pa.string()
_COUNT = pa.int64()
_REAL = pa.float64()
_TIME = pa.timestamp("us", tz="UTC")

Column = tuple[str, pa.DataType, str, str]  # name (with "?": may be null), type, unit, meaning


def _field(name: str, kind: pa.DataType, unit: str, meaning: str) -> pa.Field:
    return pa.field(
        name.removesuffix("?"),
        kind,
        nullable=name.endswith("?"),
        metadata={b"unit": unit.encode(), b"meaning": meaning.encode()},
    )


def _schema(meaning: str, *columns: Column) -> pa.Schema:
    about = {b"uapray_schema": SCHEMA_VERSION.encode(), b"meaning": meaning.encode()}
    return pa.schema([_field(*column) for column in columns], metadata=about)


GRID = _field("grid", _TEXT, "name", "grid the row belongs to; the folder `grid=…`, never inside a file")

_TRIAL_ID: Column = ("trial_id", _TEXT, "key", "step key of the search; names the perturbation")
_SPLIT: Column = ("split", _TEXT, "name", "split of the data set that was judged")
_LABEL: Column = ("label", _COUNT, "class index", "true class")
_CLEAN: Column = ("clean_prediction", _COUNT, "class index", "class predicted for the clean image")
_PERTURBED: Column = (
    "perturbed_prediction",
    _COUNT,
    "class index",
    "class predicted for the perturbed image",
)
_L2: Column = ("l2", _REAL, "pixel", "Euclidean length of the perturbation")
_LINF: Column = ("linf", _REAL, "pixel", "largest absolute value in the perturbation")
_GRADIENTS: Column = ("image_gradients", _COUNT, "images", "gradients taken, each of one image")
_QUERIES: Column = ("image_queries", _COUNT, "images", "predictions asked for, each of one image")
_FINISHED: Column = ("finished_at", _TIME, "UTC", "when the step ended")
_JUDGED: tuple[Column, ...] = (
    ("data", _TEXT, "name", "data set"),
    ("data_sha256", _TEXT, "sha256", "content of the data set"),
    ("classifier", _TEXT, "name", "classifier that was judged"),
    ("architecture?", _TEXT, "name", "its architecture; null if unknown"),
    ("initial_weights?", _TEXT, "name", "what its training began from; null if unknown"),
    ("classifier_sha256", _TEXT, "sha256", "its weights"),
)
_TARGET: Column = ("target?", _TEXT, "class name", "class every image was to be taken for; null if nontargeted")
_RULE: Column = ("rule", _TEXT, "name", "update rule; `random` is the control")
_SEED: Column = ("seed", _COUNT, "number", "seed of everything drawn at random")
_VERSION: Column = ("uapray_version", _TEXT, "version", "uapray that wrote the row")

TABLES: dict[str, pa.Schema] = {
    "trials": _schema(
        "One row a perturbation × classifier × split evaluated.",
        _TRIAL_ID,
        *_JUDGED,
        ("filter?", _TEXT, "name", "what images go through before it; null if nothing, or in rows of earlier versions"),
        ("hardened?", _TEXT, "name", "method and rounds of its hardening, e.g. `retraining:5`; null likewise"),
        ("frozen_blocks?", _COUNT, "blocks", "first blocks its training left as they were; null if no grid trained it"),
        ("tuned?", _REAL, "share", "of the way of its training that its weights have gone; null likewise"),
        ("made_on?", _TEXT, "name", "classifier the perturbation was searched on; null if on none"),
        (
            "source?",
            _TEXT,
            "name",
            "data set and split the perturbation was searched on, or its radius is from; null if on none",
        ),
        (
            "source_images",
            _COUNT,
            "images",
            "images it was made from; the validation part is not among them",
        ),
        _RULE,
        ("norm", _TEXT, "name", "norm that bounds the perturbation: `l2` or `linf`"),
        (
            "zeta?",
            _REAL,
            "share",
            "radius as a share of a mean norm; null if xi was given",
        ),
        (
            "xi_from?",
            _TEXT,
            "name",
            "whose mean norm: `whole-images`, `first-channel`, `source-images`; null without zeta, or in rows of "
            "earlier versions, which are `whole-images`",
        ),
        ("xi", _REAL, "pixel", "radius of the ball the perturbation lies in"),
        ("xi_grey", _REAL, "grey level", "255 xi"),
        _TARGET,
        ("epsilon?", _REAL, "pixel", "length of one step; null if the rule takes none"),
        _SEED,
        _SPLIT,
        ("images", _COUNT, "images", "images judged"),
        ("clean_accuracy", _REAL, "share", "clean images predicted as labelled"),
        ("robust_accuracy", _REAL, "share", "perturbed images predicted as labelled"),
        ("fooling_rate?", _REAL, "share", "images whose predicted class changed"),
        ("fooling_rate_low?", _REAL, "share", "lower limit of its Wilson interval at 95 %"),
        ("fooling_rate_high?", _REAL, "share", "upper limit of its Wilson interval at 95 %"),
        ("fooling_rate_ceiling?", _REAL, "share", "rate if every image went to the dominant label"),
        ("targeted_success_rate?", _REAL, "share", "images predicted as the target; null if nontargeted"),
        (
            "targeted_success_rate_non_target?",
            _REAL,
            "share",
            "the same of images not predicted as the target when clean; null if nontargeted or none",
        ),
        ("dominant_label?", _TEXT, "class name", "class that most perturbed images are predicted as"),
        (
            "source_fooling_rate?",
            _REAL,
            "share",
            "fooling rate on the images it was made from; null if on none, or in rows of earlier versions",
        ),
        _L2,
        _LINF,
        ("linf_grey?", _REAL, "grey level", "255 linf; null in rows of earlier versions"),
        ("rms_grey?", _REAL, "grey level", "root mean square of the perturbation; null in rows of earlier versions"),
        ("psnr?", _REAL, "dB", "peak signal-to-noise ratio, mean over up to 256 images; null if nothing changed"),
        ("ssim?", _REAL, "1", "structural similarity, mean over up to 256 images"),
        _GRADIENTS,
        _QUERIES,
        ("wall_s", _REAL, "s", "time the search took on the clock"),
        ("device", _TEXT, "name", "device of the replicas"),
        (
            "precision?",
            _TEXT,
            "name",
            "in which gradients were taken: fp32, tf32, bf16, or one +compiled; null if none, or in earlier rows",
        ),
        ("replicas", _COUNT, "processes", "replicas that served the search"),
        _VERSION,
        _FINISHED,
    ),
    "history": _schema(
        "How the search went: one row a measurement on the validation part.",
        _TRIAL_ID,
        ("start", _COUNT, "index", "which of the trial's starts"),
        ("round", _COUNT, "rounds", "rounds this start has made"),
        ("epoch", _REAL, "passes", "passes over the source images this start has made"),
        ("images_used", _COUNT, "images", "source images this start has seen at least once"),
        _GRADIENTS,
        _QUERIES,
        _L2,
        _LINF,
        ("fooling_rate?", _REAL, "share", "on the validation part of the source images"),
        ("targeted_success_rate?", _REAL, "share", "on the same part; null if nontargeted"),
        ("certainty", _REAL, "probability", "mean probability that an image there is fooled (targeted: of the target)"),
    ),
    "flows": _schema(
        "Who goes where: one row a way from label over clean to perturbed prediction.",
        _TRIAL_ID,
        _SPLIT,
        _LABEL,
        _CLEAN,
        _PERTURBED,
        ("images", _COUNT, "images", "images that went this way"),
    ),
    "images": _schema(
        "One row an image judged.",
        _TRIAL_ID,
        _SPLIT,
        ("id", _TEXT, "name", "image, as in the data set"),
        _LABEL,
        _CLEAN,
        _PERTURBED,
    ),
    "controls": _schema(
        "Matched controls of a perturbation: one row a trial × split × kind of control; none for the rule `random`.",
        _TRIAL_ID,
        _SPLIT,
        ("kind", _TEXT, "name", "`random`, `signs`, `permuted` or `scrambled`: what the draws share with it"),
        ("draws", _COUNT, "draws", "draws judged"),
        ("images", _COUNT, "images", "images that draws and perturbation were judged on, evenly spread over the split"),
        ("fooling_rate", _REAL, "share", "of the perturbation on these images"),
        ("control_fooling_rate", _REAL, "share", "mean of the draws"),
        ("control_fooling_rate_max", _REAL, "share", "highest of the draws"),
        (
            "targeted_success_rate_non_target?",
            _REAL,
            "share",
            "of the perturbation on these images; null if nontargeted or none",
        ),
        ("control_targeted_success_rate_non_target?", _REAL, "share", "mean of the draws; null likewise"),
        ("control_targeted_success_rate_non_target_max?", _REAL, "share", "highest of the draws; null likewise"),
        (
            "p_value?",
            _REAL,
            "probability",
            "(1 + draws that do at least as well) / (1 + draws), by the fooling rate, targeted by the success rate of "
            "non-targets; null where that is",
        ),
        ("control_l2", _REAL, "pixel", "mean Euclidean length of the draws"),
        ("control_linf", _REAL, "pixel", "mean largest absolute value of the draws"),
        _FINISHED,
    ),
    "renderings": _schema(
        "What is left where images are rendered before they are classified: one row a trial × split × rendering.",
        _TRIAL_ID,
        _SPLIT,
        ("rendering", _TEXT, "name", "what clean and clipped perturbed images went through, e.g. `uint8+jpeg:75`"),
        ("images", _COUNT, "images", "images judged"),
        ("clean_accuracy", _REAL, "share", "rendered clean images predicted as labelled"),
        ("robust_accuracy", _REAL, "share", "rendered perturbed images predicted as labelled"),
        ("fooling_rate", _REAL, "share", "images predicted otherwise than when rendered clean"),
        ("fooling_rate_low", _REAL, "share", "lower limit of its Wilson interval at 95 %"),
        ("fooling_rate_high", _REAL, "share", "upper limit of its Wilson interval at 95 %"),
        ("targeted_success_rate?", _REAL, "share", "images predicted as the target; null if nontargeted"),
        (
            "targeted_success_rate_non_target?",
            _REAL,
            "share",
            "the same of images not predicted as the target when rendered clean; null if nontargeted or none",
        ),
        _FINISHED,
    ),
    "curves": _schema(
        "How the rate grows with zeta: one row a classifier × norm × target × rule × seed × split, where a grid asks.",
        ("trial_id", _TEXT, "key", "the last search of the curve"),
        *_JUDGED,
        ("norm", _TEXT, "name", "norm that bounds the perturbations: `l2` or `linf`"),
        _TARGET,
        _RULE,
        _SEED,
        _SPLIT,
        ("images", _COUNT, "images", "images judged"),
        ("trial_ids", pa.list_(_TEXT), "key", "searches of the curve, by rising zeta"),
        ("zetas", pa.list_(_REAL), "share", "radii as shares of a mean norm, rising"),
        ("xi_from?", _TEXT, "name", "whose mean norm, as in `trials`; null in rows of earlier versions"),
        ("rates", pa.list_(_REAL), "share", "images fooled at each zeta, of all; targeted: brought to the target"),
        (
            "ceiling",
            _REAL,
            "share",
            "images not in the dominant label of the largest zeta when clean; targeted: not in the target",
        ),
        ("zeta50?", _REAL, "share", "zeta at which half of all images are fooled; null if none of the zetas does"),
        (
            "zeta50_low",
            _REAL,
            "share",
            "lower limit at 95 %, by patients; the largest zeta if that does not reach half",
        ),
        ("zeta50_high?", _REAL, "share", "upper limit; null if it is beyond the largest zeta"),
        ("zeta50_of_ceiling?", _REAL, "share", "zeta at which half of the ceiling is reached; null likewise"),
        ("zeta50_of_ceiling_low", _REAL, "share", "lower limit, likewise"),
        ("zeta50_of_ceiling_high?", _REAL, "share", "upper limit, likewise"),
        ("image_gradients", _COUNT, "images", "gradients taken for the whole curve, each of one image"),
        ("image_queries", _COUNT, "images", "predictions asked for in its searches, each of one image"),
        _VERSION,
        _FINISHED,
    ),
    "classes": _schema(
        "Each class against the rest, clean and under attack: one row a trial × split × class.",
        _TRIAL_ID,
        _SPLIT,
        ("class_name", _TEXT, "class name", "class the row is about"),
        ("images", _COUNT, "images", "images of that class"),
        ("sensitivity_clean?", _REAL, "share", "clean images of the class predicted as it; null if it has none"),
        ("sensitivity?", _REAL, "share", "the same of the perturbed images"),
        ("specificity_clean?", _REAL, "share", "clean images of other classes not predicted as it; null if none"),
        ("specificity?", _REAL, "share", "the same of the perturbed images"),
    ),
    "clinical": _schema(
        "What the attack means for patients: one row a trial × split × measure and class; intervals by patient.",
        _TRIAL_ID,
        _SPLIT,
        (
            "measure",
            _TEXT,
            "name",
            "`sensitivity`, `specificity`, `ppv`, `auc`; of all: `accuracy`, `calibration_error`, `called_healthy`, "
            "`referable_sensitivity`, `referable_specificity`",
        ),
        ("class_name?", _TEXT, "class name", "class against the rest; null: all classes together"),
        ("clean?", _REAL, "share", "of the clean images; null if there is nothing to divide by"),
        ("clean_low?", _REAL, "share", "lower limit at 95 %, patients resampled"),
        ("clean_high?", _REAL, "share", "upper limit"),
        ("perturbed?", _REAL, "share", "of the same images perturbed; null likewise"),
        ("perturbed_low?", _REAL, "share", "lower limit"),
        ("perturbed_high?", _REAL, "share", "upper limit"),
        ("change?", _REAL, "share", "perturbed minus clean, the same patients; null likewise"),
        ("change_low?", _REAL, "share", "lower limit"),
        ("change_high?", _REAL, "share", "upper limit"),
    ),
    "classifiers": _schema(
        "One row a classifier × split × class.",
        ("classifier_sha256", _TEXT, "sha256", "weights"),
        ("architecture?", _TEXT, "name", "architecture; null if unknown"),
        ("data_sha256?", _TEXT, "sha256", "content of the data set it was trained on; null if unknown"),
        ("initial_weights?", _TEXT, "name", "what its training began from; null if unknown"),
        (
            "recipe?",
            _TEXT,
            "JSON",
            "how it was trained, `frozen_blocks` and `tuned` only where they are not 0 and 1; null if unknown",
        ),
        _SPLIT,
        ("class_name?", _TEXT, "class name", "class the row is about; null: all classes together"),
        ("images", _COUNT, "images", "clean images of that class"),
        (
            "accuracy?",
            _REAL,
            "share",
            "rightly put in or left out of the class; null class: predicted as labelled",
        ),
        ("sensitivity?", _REAL, "share", "images of the class predicted as it"),
        ("specificity?", _REAL, "share", "images of other classes not predicted as it"),
        ("auc?", _REAL, "share", "area under the receiver operating characteristic, class against the rest"),
    ),
    "hardening": _schema(
        "How a classifier was hardened: one row a round × split; fresh perturbations before and after it.",
        ("classifier_sha256", _TEXT, "sha256", "weights after the round"),
        ("undefended_sha256", _TEXT, "sha256", "weights before the first round"),
        ("data", _TEXT, "name", "data set"),
        ("data_sha256", _TEXT, "sha256", "content of the data set"),
        ("classifier", _TEXT, "name", "hardened classifier"),
        ("undefended", _TEXT, "name", "classifier before the first round"),
        ("architecture?", _TEXT, "name", "its architecture; null if unknown"),
        ("method", _TEXT, "name", "`retraining` or `universal-training`"),
        ("round", _COUNT, "rounds", "which one, from 1"),
        ("norm", _TEXT, "name", "norm that bounds its perturbations: `l2` or `linf`"),
        ("zeta", _REAL, "share", "radius as a share of the mean norm of the training images"),
        ("xi", _REAL, "pixel", "radius"),
        ("target?", _TEXT, "class name", "class that its perturbations pull towards; null if nontargeted"),
        ("rule", _TEXT, "name", "update rule that made those before and after the round"),
        _SEED,
        ("perturbations", _COUNT, "perturbations", "how many the classifier was trained with"),
        ("epochs", _COUNT, "passes", "of the training"),
        _SPLIT,
        ("images", _COUNT, "images", "images judged"),
        ("clean_accuracy_before", _REAL, "share", "clean images predicted as labelled before the round"),
        ("clean_accuracy", _REAL, "share", "the same after it"),
        (
            "fooling_rate_before",
            _REAL,
            "share",
            "images whose class changes under a perturbation made before it",
        ),
        ("fooling_rate_low_before", _REAL, "share", "lower limit of its Wilson interval at 95 %"),
        ("fooling_rate_high_before", _REAL, "share", "upper limit"),
        (
            "targeted_success_rate_non_target_before?",
            _REAL,
            "share",
            "images brought to the target by it, of those not there when clean; null if nontargeted or none",
        ),
        ("fooling_rate", _REAL, "share", "the same of a perturbation made after the round, with the same seed"),
        ("fooling_rate_low", _REAL, "share", "lower limit"),
        ("fooling_rate_high", _REAL, "share", "upper limit"),
        ("targeted_success_rate_non_target?", _REAL, "share", "the same of the one made after the round"),
        ("fooling_rate_ceiling", _REAL, "share", "rate if every image went to the dominant label after the round"),
        ("known_fooling_rate", _REAL, "share", "mean of the perturbations trained with, after the round"),
        ("known_targeted_success_rate_non_target?", _REAL, "share", "likewise; null if nontargeted or none"),
        _GRADIENTS,
        _QUERIES,
        _VERSION,
        _FINISHED,
    ),
    "failures": _schema(
        "One row an attempt at a step that failed.",
        ("trial_id", _TEXT, "key", "step key of what failed"),
        ("step", _TEXT, "name", "kind of step: train, harden, perturb or evaluate"),
        ("error", _TEXT, "name", "kind of error"),
        ("message", _TEXT, "text", "what it said"),
        ("attempt", _COUNT, "number", "which attempt, from 1"),
        ("at", _TIME, "UTC", "when"),
    ),
    "examples": _schema(
        "A few images to look at.",
        _TRIAL_ID,
        _SPLIT,
        ("id", _TEXT, "name", "image, as in the data set"),
        _LABEL,
        _CLEAN,
        _PERTURBED,
        ("clean_png", pa.binary(), "PNG", "clean image"),
        ("perturbed_png", pa.binary(), "PNG", "perturbed image, clipped to valid pixels"),
        ("perturbation_png", pa.binary(), "PNG", "perturbation, stretched to the full range of grey"),
        ("class_names", pa.list_(_TEXT), "class names", "name of each class index"),
    ),
}


PARTS = frozenset({"flows", "images", "classes", "clinical", "examples"})
"""Tables whose rows are written before the row of ``trials`` with the same key, and count once that is there."""


OF_CLASSIFIERS = frozenset({"classifiers", "hardening"})
"""Tables whose rows are written before the classifier that their keys begin with, and count once that is there."""


def with_grid(schema: pa.Schema) -> pa.Schema:
    """Return the schema that readers see: the partition's column after the first one."""
    return schema.insert(1, GRID)
