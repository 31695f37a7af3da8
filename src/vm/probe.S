/*
 * The accelerator's examination: a BIOS ROM that uses what a Linux guest uses first. It goes from real mode through
 * protected mode into long mode with paging, takes an invalid-opcode and a page fault and returns from both, then tries
 * SSE, BMI2 and CMPXCHG16B (when CPUID offers them). The answer goes to QEMU's isa-debug-exit at port 0xf4, which ends
 * QEMU with the status 2 * answer + 1:
 *
 *     0x21 (status 67)   everything came out right
 *     0x23 (status 71)   CMPXCHG16B computes flags from a stale state, as QEMU 7's emulation does
 *     0x25 (status 75)   another instruction gave a wrong result
 *
 * A broken accelerator gives no answer at all: it hangs, or QEMU reports an internal error. Code below 64 KiB, linked at
 * f000:0000; src/vm/probe.rs pads it to a ROM of 64 KiB and writes the reset vector. probe.bin holds the assembled bytes;
 * a test assembles this file again and compares.
 */
        .set    BASE, 0xf0000           /* linear address of the ROM */
        .set    PML4, 0x10000           /* three page tables of 4 KiB: 4 MiB mapped one to one */
        .set    IDT, 0x13000
        .set    STACK, 0x80000
        .set    SEEN, 0x21000           /* how many faults were taken */
        .set    OPERAND, 0x22000
        .set    UNMAPPED, 0x40000000
        .set    DEBUG_EXIT, 0xf4

        .text
        .code16
start:  cli
        lgdtl   %cs:gdt_register
        mov     %cr0, %eax
        or      $1, %eax
        mov     %eax, %cr0
        ljmpl   $8, $(BASE + protected)

        .code32
protected = . - start
        mov     $0x10, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $STACK, %esp
        mov     $PML4, %edi
        xor     %eax, %eax
        mov     $(0x3000 / 4), %ecx
        rep stosl
        movl    $(PML4 + 0x1003), PML4
        movl    $(PML4 + 0x2003), PML4 + 0x1000
        movl    $0x000083, PML4 + 0x2000
        movl    $0x200083, PML4 + 0x2008
        mov     %cr4, %eax
        or      $0x620, %eax            /* PAE, OSFXSR, OSXMMEXCPT */
        mov     %eax, %cr4
        mov     $PML4, %eax
        mov     %eax, %cr3
        mov     $0xc0000080, %ecx       /* EFER */
        rdmsr
        or      $0x100, %eax            /* LME */
        wrmsr
        mov     %cr0, %eax
        and     $~4, %eax               /* EM off */
        or      $0x80000002, %eax       /* PG, MP */
        mov     %eax, %cr0
        ljmp    $0x18, $(BASE + long)

        .code64
long = . - start
        movb    $0, SEEN
        mov     $IDT, %rdi
        mov     $32, %ecx
        mov     $(BASE + handler), %rax
1:      movw    %ax, (%rdi)
        movw    $0x18, 2(%rdi)
        movw    $0x8e00, 4(%rdi)        /* present interrupt gate */
        mov     %rax, %rbx
        shr     $16, %rbx
        movw    %bx, 6(%rdi)
        shr     $16, %rbx
        movl    %ebx, 8(%rdi)
        movl    $0, 12(%rdi)
        add     $16, %rdi
        loop    1b
        sub     $16, %rsp
        movw    $0x1ff, (%rsp)
        movq    $IDT, 2(%rsp)
        lidt    (%rsp)

        ud2                             /* the handler steps over it */
        mov     $UNMAPPED, %rax
        movb    $1, (%rax)              /* and over this one */
        cmpb    $2, SEEN
        jne     wrong

        mov     $0x0123456789abcdef, %rax
        movq    %rax, %xmm0
        movdqu  %xmm0, OPERAND
        cmp     %rax, OPERAND
        jne     wrong

        mov     $7, %eax                /* BMI2? */
        xor     %ecx, %ecx
        cpuid
        bt      $8, %ebx
        jnc     2f
        mov     $3, %edx
        mov     $5, %r8d
        shlx    %rdx, %r8, %r8
        cmp     $40, %r8
        jne     wrong

2:      mov     $1, %eax                /* CMPXCHG16B? */
        xor     %ecx, %ecx
        cpuid
        bt      $13, %ecx
        jnc     3f
        mov     $OPERAND, %rsi
        movq    $1, (%rsi)
        movq    $2, 8(%rsi)
        mov     $1, %eax
        mov     $2, %edx
        mov     $3, %ebx
        mov     $4, %ecx
        mov     $0x12345000, %rdi
        xor     %r9, %r9
        pushq   $2                      /* all flags clear */
        popfq
        add     %rdi, %r9               /* leaves a lazily computed flag state behind */
        bswap   %r10
        cmpxchg16b (%rsi)
        pushfq
        pop     %r11
        test    $0xffc00000, %r11d      /* bits that no flag has */
        jnz     stale

3:      mov     $0x21, %al
        jmp     answer
stale:  mov     $0x23, %al
        jmp     answer
wrong:  mov     $0x25, %al
answer: mov     $DEBUG_EXIT, %dx
        out     %al, %dx
halt:   hlt
        jmp     halt

/* The first fault is #UD (2 bytes long, no error code); the second #PF (3 bytes long, with an error code). */
handler = . - start
        incb    SEEN
        cmpb    $1, SEEN
        jne     4f
        addq    $2, (%rsp)
        iretq
4:      add     $8, %rsp
        addq    $3, (%rsp)
        iretq

        .align  16
gdt = . - start
        .quad   0
        .quad   0x00cf9b000000ffff      /* 08: 32-bit code */
        .quad   0x00cf93000000ffff      /* 10: data */
        .quad   0x00af9b000000ffff      /* 18: 64-bit code */
gdt_register = . - start
        .word   31
        .long   BASE + gdt
