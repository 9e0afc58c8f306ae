"""Records for compiled code: a numpy structured dtype whose fields are attributes of a pointer.

`Processor = struct("Processor", dtype)` gives a type for signatures; `Processor.at(address)` gives a view
in compiled code and in Python alike. `view.field` is an int64 (unsigned fields are zero-extended, signed
fields sign-extended, a store truncates); `view.array[i]` indexes a sub-array without bounds check
(the index is the compiled code's own, never a guest's); a nested record is a view again.

numba's own Record type would do, but its name spells every field and ends up in every mangled symbol.
"""

import ctypes
import operator

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.imputils import lower_constant
from numba.core.typing.templates import (
    AbstractTemplate,
    AttributeTemplate,
    infer_getattr,
    infer_global,
    signature,
)
from numba.extending import (
    intrinsic,
    lower_builtin,
    lower_getattr_generic,
    lower_setattr_generic,
    models,
    register_model,
    typeof_impl,
)

from vmx.state.jit import JIT

_I64 = ir.IntType(64)
_structs: dict[str, "Struct"] = {}


class StructType(types.Type):
    """A pointer to one record."""

    def __init__(self, name):
        super().__init__(name)
        self.struct_name = name

    @property
    def fields(self):
        return _structs[self.struct_name].dtype.fields


class ArrayFieldType(types.Type):
    """A pointer to a sub-array inside a record."""

    def __init__(self, struct_name, field):
        super().__init__(f"{struct_name}_{field}")
        self.struct_name, self.field = struct_name, field

    @property
    def element(self):
        return _structs[self.struct_name].dtype.fields[self.field][0].subdtype[0]


@register_model(StructType)
class _StructModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _I64)


@register_model(ArrayFieldType)
class _ArrayFieldModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _I64)


def _record_type(dtype):
    for struct in _structs.values():
        if struct.dtype == dtype:
            return struct.type
    raise TypeError(f"nested record {dtype} is not declared with struct()")


def _element_type(dtype):
    return _record_type(dtype) if dtype.fields else types.int64


@infer_getattr
class _StructAttributes(AttributeTemplate):
    key = StructType

    def generic_resolve(self, typ, attr):
        if attr not in typ.fields:
            return None
        dtype = typ.fields[attr][0]
        return ArrayFieldType(typ.struct_name, attr) if dtype.subdtype else _element_type(dtype)


def _load(builder, address, dtype):
    narrow = ir.IntType(dtype.itemsize * 8)
    value = builder.load(builder.inttoptr(address, narrow.as_pointer()), align=dtype.itemsize)
    if dtype.itemsize == 8:
        return value
    return builder.sext(value, _I64) if dtype.kind == "i" else builder.zext(value, _I64)


def _store(builder, address, dtype, value):
    narrow = ir.IntType(dtype.itemsize * 8)
    value = value if dtype.itemsize == 8 else builder.trunc(value, narrow)
    builder.store(value, builder.inttoptr(address, narrow.as_pointer()), align=dtype.itemsize)


def _offset(builder, base, offset):
    return builder.add(base, ir.Constant(_I64, offset))


@lower_getattr_generic(StructType)
def _struct_getattr(context, builder, typ, value, attr):
    dtype, offset = typ.fields[attr][:2]
    address = _offset(builder, value, offset)
    return address if dtype.subdtype or dtype.fields else _load(builder, address, dtype)


@lower_setattr_generic(StructType)
def _struct_setattr(context, builder, sig, args, attr):
    typ, (target, value) = sig.args[0], args
    dtype, offset = typ.fields[attr][:2]
    _store(
        builder,
        _offset(builder, target, offset),
        dtype,
        context.cast(builder, value, sig.args[1], types.int64),
    )


@infer_global(operator.getitem)
class _ArrayGetitem(AbstractTemplate):
    def generic(self, args, kws):
        if len(args) == 2 and isinstance(args[0], ArrayFieldType) and isinstance(args[1], types.Integer):
            return signature(_element_type(args[0].element), args[0], types.int64)


@infer_global(operator.setitem)
class _ArraySetitem(AbstractTemplate):
    def generic(self, args, kws):
        if len(args) == 3 and isinstance(args[0], ArrayFieldType) and isinstance(args[1], types.Integer):
            return signature(types.none, args[0], types.int64, types.int64)


def _element_address(builder, typ, base, index):
    return builder.add(base, builder.mul(index, ir.Constant(_I64, typ.element.itemsize)))


@lower_builtin(operator.getitem, ArrayFieldType, types.int64)
def _array_getitem(context, builder, sig, args):
    address = _element_address(builder, sig.args[0], args[0], args[1])
    return address if sig.args[0].element.fields else _load(builder, address, sig.args[0].element)


@lower_builtin(operator.setitem, ArrayFieldType, types.int64, types.int64)
def _array_setitem(context, builder, sig, args):
    address = _element_address(builder, sig.args[0], args[0], args[1])
    _store(builder, address, sig.args[0].element, args[2])
    return context.get_dummy_value()


class LayoutType(types.Opaque):
    """A Struct itself as a global of compiled code: it has `at`, `address` and `size`."""

    def __init__(self, struct_name):
        super().__init__(f"Layout_{struct_name}")
        self.struct_name = struct_name


register_model(LayoutType)(models.OpaqueModel)


@infer_getattr
class _LayoutAttributes(AttributeTemplate):
    key = LayoutType

    def generic_resolve(self, typ, attr):
        if attr == "size":
            return types.int64
        if attr in ("at", "address"):
            return self.context.resolve_value_type(getattr(_structs[typ.struct_name], attr))


@lower_getattr_generic(LayoutType)
def _layout_getattr(context, builder, typ, value, attr):
    if attr == "size":
        return ir.Constant(_I64, _structs[typ.struct_name].size)
    return context.get_dummy_value()


@lower_constant(LayoutType)
def _layout_constant(context, builder, typ, value):
    return context.get_dummy_value()


class View:
    """A record at a host address, for Python: the same attributes as in compiled code, np.int64 values."""

    __slots__ = ("_address", "_struct")

    def __init__(self, struct, address):
        object.__setattr__(self, "_struct", struct)
        object.__setattr__(self, "_address", int(address))

    def __getattr__(self, name):
        scalar = self._struct.scalars.get(name)
        if scalar is not None:
            return np.int64(scalar[0](self._address + scalar[1]).value)
        dtype, offset = self._field(name)
        return _get(dtype, self._address + offset)

    def __setattr__(self, name, value):
        scalar = self._struct.scalars.get(name)
        if scalar is None:
            self._field(name)
            raise AttributeError(
                f"{self._struct.name}.{name} is an array or a record: assign to its elements"
            )
        scalar[0](self._address + scalar[1]).value = int(value)  # ctypes cuts to the width

    def _field(self, name):
        try:
            return self._struct.dtype.fields[name][:2]
        except KeyError:
            raise AttributeError(f"{self._struct.name} has no field {name!r}") from None


class ArrayView:
    """A sub-array of a record, for Python."""

    __slots__ = ("_address", "_element")

    def __init__(self, element, address):
        self._element, self._address = element, address

    def __getitem__(self, index):
        return _get(self._element, self._address + int(index) * self._element.itemsize)

    def __setitem__(self, index, value):
        _put(self._element, self._address + int(index) * self._element.itemsize, value)


_CTYPES = {
    ("u", 1): ctypes.c_uint8,
    ("u", 2): ctypes.c_uint16,
    ("u", 4): ctypes.c_uint32,
    ("u", 8): ctypes.c_int64,
    ("i", 1): ctypes.c_int8,
    ("i", 2): ctypes.c_int16,
    ("i", 4): ctypes.c_int32,
    ("i", 8): ctypes.c_int64,
}


def _get(dtype, address):
    if dtype.subdtype:
        return ArrayView(dtype.subdtype[0], address)
    if dtype.fields:
        return View(_structs[_record_type(dtype).struct_name], address)
    return np.int64(_CTYPES[dtype.kind, dtype.itemsize].from_address(address).value)


def _put(dtype, address, value):
    _CTYPES[dtype.kind, dtype.itemsize].from_address(address).value = int(value)


def _scalars(dtype):
    """Name -> (ctypes from_address, offset) of the plain fields."""
    plain = {
        name: field for name, field in dtype.fields.items() if not field[0].subdtype and not field[0].fields
    }
    return {
        name: (_CTYPES[field[0].kind, field[0].itemsize].from_address, field[1])
        for name, field in plain.items()
    }


class Struct:
    """A named record layout. Attributes: `name`, `dtype`, `type` (numba), `at` (address -> view), `size` (bytes)."""

    def __init__(self, name, dtype):
        self.name, self.dtype, self.type = name, dtype, StructType(name)
        self.size = dtype.itemsize
        self.scalars = _scalars(dtype)
        _structs[name] = self
        self.at = self._compiled_at() if JIT else self.view
        self.address = self._compiled_address() if JIT else (lambda view: np.int64(view._address))

    def _compiled_at(self):
        struct_type = self.type

        @intrinsic
        def at(typingctx, address):
            def codegen(context, builder, sig, args):
                return context.cast(builder, args[0], sig.args[0], types.int64)

            return struct_type(types.int64), codegen

        return at

    def _compiled_address(self):
        struct_type = self.type

        @intrinsic
        def address(typingctx, view):
            return types.int64(struct_type), lambda context, builder, sig, args: args[0]

        return address

    def view(self, address):
        """A Python view of the record at a host address."""
        return View(self, address)

    def new(self):
        """A zeroed record: a numpy array of one element (shape (1,))."""
        return np.zeros(1, self.dtype)

    def offset(self, field):
        """The byte offset of a field."""
        return self.dtype.fields[field][1]


def struct(name, fields) -> Struct:
    """Declare a record layout from a list of (name, format[, shape]) or a dtype; natural alignment."""
    dtype = fields if isinstance(fields, np.dtype) else np.dtype(fields, align=True)
    return Struct(name, dtype)


@typeof_impl.register(Struct)
def _typeof_struct(value, context):
    return LayoutType(value.name)
