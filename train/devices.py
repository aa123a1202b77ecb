"""Which devices a run uses."""

from config.errors import OptionError
from config.run import DeviceOptions
from config.runtime import mx


def contexts(options: DeviceOptions) -> list[mx.Context]:
    """Contexts of --gpus and --cpus: the GPUs named, else all usable GPUs, else N CPU contexts."""
    found = mx.context.num_gpus()
    if options.gpus is None:
        return [mx.gpu(k) for k in range(found)] or [mx.cpu(k) for k in range(options.cpus)]
    try:
        wanted = [int(part) for part in options.gpus.split(",") if part.strip()]
    except ValueError:
        raise OptionError(f"--gpus {options.gpus!r}: expected numbers like 0,1") from None
    missing = [k for k in wanted if not 0 <= k < found]
    if missing:
        raise OptionError(
            f"--gpus {options.gpus}: {found} usable GPUs here, GPU {missing[0]} is not one of them; leave --gpus out "
            "to use what there is (python -m tools.doctor tells why a GPU cannot be used)"
        )
    return [mx.gpu(k) for k in wanted] or [mx.cpu(k) for k in range(options.cpus)]
