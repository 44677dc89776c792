"""Whether the shapes of all tensors in an ONNX model follow from the shape of its input alone.

Then one run on anything of that shape says how long every other takes and how much memory (see `teachers.trial`). It is decided by
lists of operators: of those whose result has the shape that the shapes of its inputs give, of those where the contents of
some inputs decide it, and of those where contents always do. An operator on none of them is refused.
"""

from __future__ import annotations

from pathlib import Path

from rldistill.formats.onnx.contents import Contents, Node
from rldistill.types import UserError, printable

# Operators where the contents of the inputs at these places decide the shape of the result.
_SIZES: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "ConvTransposeWithDynamicPads": (2,),
    "CropAndResize": (3,),
    "DFT": (1, 2),
    "Expand": (1,),
    "ExpandDims": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "SequenceAt": (1,),
    "SequenceErase": (1,),
    "SequenceInsert": (2,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "Tile": (1, 2),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
    **{
        f"Reduce{name}": (1,)
        for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
}
_RANDOM = {
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}
# Operators whose results' shapes follow from the shapes of their inputs and from attributes.
_ONNX = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization Bernoulli
BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike CausalConvWithState Ceil Celu Clip Concat
ConcatFromSequence Constant Conv ConvInteger ConvTranspose Cos Cosh CumProd CumSum DeformConv DepthToSpace
DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp EyeLike Flatten Floor GRU Gather
GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN LRN LSTM
LayerNormalization LeakyRelu Less LessOrEqual LinearAttention Log LogSoftmax LpNormalization LpPool MatMul
MatMulInteger Max MaxPool MaxRoiPool Mean MeanVarianceNormalization Min Mish Mod Mul Multinomial Neg
NegativeLogLikelihoodLoss Not Optional OptionalGetElement OptionalHasElement Or PRelu Pow QLinearConv QLinearMatMul
QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Reciprocal Relu
ReverseSequence RoiAlign RotaryEmbedding Round Scatter ScatterElements ScatterND Selu SequenceConstruct
SequenceEmpty SequenceLength Shape Shrink Sigmoid Sign SimplifiedLayerNormalization Sin Sinh Size Softmax
SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Sqrt Sub Sum SwiGLU Swish Tan Tanh TensorScatter
ThresholdedRelu Transpose Trilu Where Xor
"""
_ONNX_ML = """
ArrayFeatureExtractor Binarizer FeatureVectorizer Imputer LabelEncoder LinearClassifier LinearRegressor Normalizer
OneHotEncoder SVMClassifier SVMRegressor Scaler TreeEnsemble TreeEnsembleClassifier TreeEnsembleRegressor ZipMap
"""
_MICROSOFT = """
Attention BiasAdd BiasDropout BiasGelu BiasSoftmax BiasSplitGelu CDist DequantizeLinear DynamicQuantizeLSTM
DynamicQuantizeMatMul EmbedLayerNormalization FastGelu FusedConv FusedGemm FusedMatMul FusedMatMulActivation
GatherND Gelu GemmFastGelu GridSample GroupNorm Inverse IsAllFinite MatMulBnb4 MatMulInteger16 MatMulIntegerToFloat
MatMulNBits MultiHeadAttention NhwcConv NhwcFusedConv NhwcMaxPool QAttention QEmbedLayerNormalization QGemm
QLinearAdd QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul
QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere QuantizeLinear QuickGelu ReduceSumInteger SkipGroupNorm
SkipLayerNormalization SkipSimplifiedLayerNormalization TransposeMatMul Trilu
"""
_SHAPED = {"": set(_ONNX.split()), "ai.onnx.ml": set(_ONNX_ML.split()), "com.microsoft": set(_MICROSOFT.split())}
_SHAPED["ai.onnx"] = _SHAPED[""]
_ONLY_SHAPES = {"Shape", "Size", "SequenceLength", "OptionalHasElement"}
"""Operators that see nothing of what is in their input."""


def check_sizes(contents: Contents, path: Path) -> None:
    """Refuses a model with a tensor whose shape depends on what is in an observation, or on chance.

    Raises:
        UserError: there is one.
    """
    node = _sized_by_contents(contents)
    if node is not None:
        raise UserError(
            f"{path} is refused: the size of what its {printable(node.operator, 60)} gives may depend on what is in an "
            "observation or on chance, which no network needs (in PyTorch, torch.where does what indexing with a mask does)"
        )


def _sized_by_contents(contents: Contents) -> Node | None:
    """The first node whose result's shape may depend on contents; None where there is none."""
    own: dict[tuple[str, str], list[int]] = {}
    for scope, function in enumerate(contents.functions, 1):
        own.setdefault((function.domain, function.name), []).append(scope)
    open_ = {(0, name) for name in contents.given - contents.weights}  # what depends on observations or on chance
    before = -1
    while before < len(open_):  # in the order of the nodes one round is enough, but for functions and damaged files
        before = len(open_)
        for node in contents.nodes:
            inputs = [bool(name) and (node.scope, name) in open_ for name in node.inputs]
            called = own.get((node.domain, node.operator), ())
            for scope in called:
                function = contents.functions[scope - 1]
                given = zip(function.inputs, inputs, strict=False)
                open_.update((scope, name) for name, is_open in given if is_open)
                results = zip(node.outputs, function.outputs, strict=False)
                open_.update((node.scope, name) for name, result in results if (scope, result) in open_)
            if called or not (any(inputs) or node.operator in _RANDOM) or node.operator in _ONLY_SHAPES:
                continue
            sizes = _SIZES.get(node.operator)
            listed = sizes is not None or node.operator in _SHAPED.get(node.domain, ())
            if not listed or any(place < len(inputs) and inputs[place] for place in sizes or ()):
                return node
            open_.update((node.scope, name) for name in node.outputs if name)
    return None
