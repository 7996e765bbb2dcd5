"""How XLA multiplies float32."""

from jax import lax

PRECISIONS = {                                   # setting -> precision of the products
    "float32": lax.Precision.HIGHEST,            # full float32, on every device
    "tf32": lax.Precision.HIGH,                  # on a GPU with TF32: 10-bit mantissa; elsewhere full float32
    "bfloat16": lax.Precision.DEFAULT,           # unused: the operands are bfloat16
}
