# Loaded by a program of a package when all of it is compiled and nothing of it has run yet (an INIT block). Each request
# names a process that stands for the program; a fork takes over what that process was started with and goes on into the
# program, which thus need not be loaded again.
package Kiln::Serve;
use strict;
use warnings;

sub read_all {
    my ($path) = @_;
    open(my $file, '<', $path) or return;
    local $/;
    return scalar <$file>;
}

# Becomes what the process `$pid` is: its arguments, environment, folder, umask and standard files.
sub become {
    my ($pid) = @_;
    my ($words, $environment, $status) = map { scalar read_all("/proc/$pid/$_") } qw(cmdline environ status);
    return 0 unless defined $words && defined $environment && ($status // '') =~ /^Umask:\s*([0-7]+)/m;
    umask oct $1;
    my @words = split /\0/, $words, -1;
    pop @words;
    return 0 if @words < 2;
    chdir "/proc/$pid/cwd" or return 0;
    open(STDIN, '<', "/proc/$pid/fd/0") or return 0;
    open(STDOUT, '>>', "/proc/$pid/fd/1") or return 0;
    open(STDERR, '>>', "/proc/$pid/fd/2") or return 0;
    %ENV = map { split /=/, $_, 2 } grep { /=/ } split /\0/, $environment;
    (undef, $0, @ARGV) = @words;
    return 1;
}

sub reply {
    my ($path, $text) = @_;
    open(my $reply, '>', $path) or return;
    syswrite $reply, "$text\n";
    close $reply;
}

# Waits for the program that this process's child is, tells how it ended, and is gone without any clean-up of the program's.
sub attend {
    my ($child, $reply) = @_;
    waitpid $child, 0;
    reply($reply, $? & 127 ? 128 + ($? & 127) : $? >> 8);
    kill KILL => $$;
    sleep;
}

# Returns in a process that is to run the program.
sub serve {
    my ($folder) = @_;
    my ($pending, %owner) = ('');
    open(my $requests, '+<', "$folder/requests") or exit 1;
    $SIG{CHLD} = 'IGNORE';
    while (1) {
        while ($pending !~ /\n/) {
            sysread($requests, $pending, 4096, length $pending) or next;
        }
        $pending =~ s/^(\d+) (\d+)\n// or exit 1;
        my ($slot, $pid) = ($1, $2);
        $owner{$slot} = $pid;
        for my $other (grep { !kill 0, $owner{$_} } keys %owner) {
            delete $owner{$other};
            unlink "$folder/lock.$other";
        }
        my $reply = "$folder/reply.$slot";
        my $attendant = fork;
        reply($reply, 'original') unless defined $attendant;
        next if $attendant // 1;
        $SIG{CHLD} = 'DEFAULT';
        close $requests;
        my $child = become($pid) ? fork : undef;
        if (!defined $child) {
            reply($reply, 'original');
            kill KILL => $$;
            sleep;
        }
        attend($child, $reply) if $child;
        return;
    }
}

serve(shift @ARGV);
1;
