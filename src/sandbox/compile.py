# Compiles the files named in a list. Sources that were made while the tree was worked on get the epoch as their time first,
# as the compiled file holds the time of its source.
import os, py_compile, sys, time
names, epoch, started = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
mode = py_compile.PycInvalidationMode.TIMESTAMP
bad = False
for name in open(names).read().splitlines():
    try:
        changed = os.stat(name).st_mtime
        if changed > epoch or started <= changed <= time.time():
            os.utime(name, (epoch, epoch))
        py_compile.compile(name, doraise=True, invalidation_mode=mode)
    except FileNotFoundError:
        pass
    except (OSError, py_compile.PyCompileError) as e:
        bad = True
        print(e)
sys.exit(bad)
