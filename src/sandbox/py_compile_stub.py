# Stands for py_compile.py: notes what is to be compiled when run as a program, is the original when imported.
import sys
if __name__ == '__main__':
    with open('@DIR@/calls/@NAME@', 'a') as notes:
        notes.write('call\n' + ''.join(' ' + word + '\n' for word in sys.argv[1:]))
else:
    with open('@DIR@/@NAME@.original') as original:
        exec(original.read())
