"""Options of tools/convert_weights.py."""

from dataclasses import dataclass

from config.options import option


@dataclass(frozen=True)
class ConvertOptions:
    """What to convert, for which network; a word that belongs to no flag is the file.

    There is no boolean among the fields: a word after a flag is always that flag's value.
    """

    from_: str = option("ssd.pytorch", "project that the weights come from (see docs/weights.md)", "source")
    file: str = option("", "file to convert; a word without a flag is it, too", "source")
    network: str = option("vgg16_ssd_voc", "network to make weights for (see docs/networks.md)", "network")
    data_shape: tuple[int, ...] = option((300,), "input side, or height,width", "network", minimum=32)
    num_class: int | None = option(
        None, "classes of the network (default: those of the heads in the file, else 20)", "network", minimum=1
    )
    class_names: tuple[str, ...] = option(
        (), "names of the classes (default: VOC's if there are 20, else class0, class1, ...)", "network"
    )
    prefix: str = option("", "writes PREFIX-0000.params (default: the file without its suffix)", "output")
