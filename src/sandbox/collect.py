# Works out which files the noted calls of py3compile would compile, with py3compile's own code.
import importlib.machinery, importlib.util, json, sys
sys.dont_write_bytecode = True
noted, out = sys.argv[1:3]
loader = importlib.machinery.SourceFileLoader('py3compile', '/usr/bin/py3compile')
spec = importlib.util.spec_from_loader('py3compile', loader)
module = importlib.util.module_from_spec(spec)
loader.exec_module(module)
found = set()


def collect(files, versions, force, optimize, e_patterns=None):
    for name, wanted in module.filter_files(files, e_patterns, versions):
        for version in wanted:
            found.add(('python' + (version if isinstance(version, str) else module.vrepr(version)), name))


module.compile = collect
status = 0
for words in json.load(open(noted)):
    sys.argv = ['py3compile'] + words
    try:
        module.main()
    except SystemExit as e:
        status = status or e.code or 0
with open(out, 'w') as f:
    for version, name in sorted(found):
        f.write(version + ' ' + name + '\n')
sys.exit(status)
