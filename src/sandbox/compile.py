# Compiles the files named in a list. Sources that were made while the tree was worked on get the epoch as their time first,
# as the compiled file holds the time of its source. `ahead`, files are compiled into one store beside the tree; otherwise
# what is in that store is taken for sources that have not changed since.
import gc, importlib._bootstrap_external as external, importlib.util, marshal, os, py_compile, sys, time
how, names, epoch, started, store = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
# A compiler makes no garbage in cycles that would be worth a search every few hundred objects.
gc.set_threshold(200000)
mode = py_compile.PycInvalidationMode.TIMESTAMP
names = open(names).read().splitlines()


def changed(status):
    return status.st_mtime > epoch or started <= status.st_mtime <= time.time()


def look(status):
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def ahead():
    found, kept = {}, []
    external._write_atomic = lambda path, data, mode=0o666: kept.append(bytes(data))
    for name in names:
        try:
            status = os.stat(name)
            if changed(status):
                continue
            kept.clear()
            py_compile.compile(name, cfile='/dev/null.pyc', doraise=True, invalidation_mode=mode)
            found[name] = look(status), kept[0]
        except (OSError, py_compile.PyCompileError, IndexError):
            pass
    with open(store, 'wb') as out:
        marshal.dump(found, out)
    return False


def place(name, data):
    compiled = importlib.util.cache_from_source(name)
    if os.path.islink(compiled) or (os.path.exists(compiled) and not os.path.isfile(compiled)):
        return False
    os.makedirs(os.path.dirname(compiled), exist_ok=True)
    external._write_atomic(compiled, data, external._calc_mode(name))
    return True


def compile_all():
    try:
        with open(store, 'rb') as kept:
            known = marshal.load(kept)
    except (OSError, EOFError, ValueError, TypeError):
        known = {}
    bad = False
    for name in names:
        try:
            status = os.stat(name)
            if changed(status):
                os.utime(name, (epoch, epoch))
            elif name in known and known[name][0] == look(status) and place(name, known[name][1]):
                continue
            py_compile.compile(name, doraise=True, invalidation_mode=mode)
        except FileNotFoundError:
            pass
        except (OSError, py_compile.PyCompileError) as e:
            bad = True
            print(e)
    return bad


sys.exit(ahead() if how == 'ahead' else compile_all())
