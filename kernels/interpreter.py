"""
Triton's interpreter, quicker. It puts functions of its own in the place of triton.language's: when a kernel is launched, and again
whenever the kernel calls a device function. The second is for nothing, since they are there already, and it takes half of a kernel's
time. With this they are put there once a launch
(and once more for functions of Triton's own library).
"""
from triton.runtime import interpreter


def patch_once_a_launch():
    """Device functions find triton.language as their launch has patched it. (Other versions of Triton: as they are.)"""
    patch, scope_of = getattr(interpreter, "_patch_lang", None), getattr(interpreter, "_LangPatchScope", None)
    if patch is None or scope_of is None or getattr(patch, "once_a_launch", False):
        return
    language = (interpreter.tl, interpreter.tl.core)
    patched = set()  # during a launch: the modules

    def patch_what_is_not(fn):
        modules = {i for i, module in enumerate(language) if any(value is module for value in fn.__globals__.values())}
        if modules and modules <= patched:
            return scope_of()
        scope = patch(fn)
        if not patched:  # the launch itself; its end restores triton.language
            restore = scope.restore

            def end():
                patched.clear()
                restore()
            scope.restore = end
        patched.update(modules)
        return scope
    patch_what_is_not.once_a_launch = True
    interpreter._patch_lang = patch_what_is_not
